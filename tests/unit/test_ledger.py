"""The ledger: durable, chained, one writer, and nothing acknowledged is ever lost."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import autoresearch
from autoresearch.search import ledger as ledger_module
from autoresearch.search import schema
from autoresearch.search.ledger import Ledger
from autoresearch.values.config import Config, override
from autoresearch.values.constants import fingerprint
from autoresearch.values.errors import AutoresearchError, TrustViolation, WorkspaceError
from autoresearch.values.records import (
    Decision,
    Measurement,
    Outcome,
    Proposal,
    Purpose,
    Verdict,
)


def make_run(run_id: int, commit: str = "base", **changes: object) -> Measurement:
    """A scored run; `changes` replace its fields."""
    fields: dict[str, object] = {
        "run_id": run_id,
        "commit": commit,
        "purpose": Purpose.CALIBRATE,
        "seed": run_id,
        "outcome": Outcome.SCORED,
        "val_bpb": 2.0 + run_id / 100,
    }
    return Measurement(**{**fields, **changes})  # type: ignore[arg-type]


def make_proposal(description: str = "DEPTH 2 -> 3", source: str = "DEPTH = 3\n") -> Proposal:
    """A proposal on top of the baseline."""
    return Proposal(
        source=source,
        description=description,
        parent="base",
        researcher="tpe",
        parameters={"DEPTH": 3},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the ledger of a test lies."""
    return tmp_path / "ledger.sqlite"


def write_session(path: Path) -> None:
    """A short session: two calibrations, one kept trial, one that is still open."""
    with Ledger.open(path) as ledger:
        ledger.start_session(Config(), "autoresearch/main", "base", {"cpu": "x"}, "DEPTH = 2\n")
        ledger.record_run(make_run(1), None)
        ledger.record_run(make_run(2), None)
        first = ledger.open_trial(make_proposal(), "aaa")
        ledger.record_run(make_run(3, "aaa", purpose=Purpose.SCREEN), first)
        ledger.record_run(make_run(4, "base", purpose=Purpose.CHAMPION), first)
        decision = Decision(verdict=Verdict.KEEP, reason="better", val_bpb=1.9, gain_bpb=0.1)
        ledger.close_trial(first, decision)
        ledger.crown("aaa", first)
        second = ledger.open_trial(make_proposal("DEPTH 3 -> 4", "DEPTH = 4\n"), "bbb")
        ledger.record_run(make_run(5, "bbb", purpose=Purpose.SCREEN), second)


def tamper(path: Path, *statements: str) -> None:
    """Change the file behind the ledger's back, triggers removed first."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("DROP TRIGGER IF EXISTS events_stay_unchanged")
    connection.execute("DROP TRIGGER IF EXISTS events_stay_there")
    for statement in statements:
        connection.execute(statement)
    connection.close()


def test_history_tells_what_was_written(path: Path) -> None:
    """Trials, runs, champion and the open trial come back as they went in."""
    write_session(path)
    history = Ledger.read(path).history()
    assert (history.baseline, history.champion, history.champion_trial_id) == ("base", "aaa", 1)
    assert history.branch == "autoresearch/main"
    assert history.baseline_constants == {"DEPTH": 2}
    assert history.baseline_fingerprint == fingerprint("DEPTH = 2")
    assert [run.run_id for run in history.runs] == [1, 2, 3, 4, 5]
    assert history.next_run_id == 6
    kept, still_open = history.trials
    assert [run.run_id for run in kept.runs] == [3]  # the champion's run 4 is not the trial's
    assert kept.decision is not None
    assert kept.decision.verdict is Verdict.KEEP
    assert kept.parameters == {"DEPTH": 3}
    assert still_open.decision is None
    assert history.open_trial == still_open
    assert [run.run_id for run in still_open.runs] == [5]
    assert [crown.commit for crown in history.crowns] == ["aaa"]
    assert history.is_running


def test_runs_of_gives_unselected_runs(path: Path) -> None:
    """By default only calibration and champion runs count as a commit's fresh runs."""
    write_session(path)
    history = Ledger.read(path).history()
    assert [run.run_id for run in history.runs_of("base")] == [1, 2, 4]
    assert history.runs_of("aaa") == ()
    assert len(history.runs_of("aaa", frozenset({Purpose.SCREEN}))) == 1


def test_resumed_session_goes_on(path: Path) -> None:
    """A second session on the branch keeps champion, numbers and the open trial."""
    write_session(path)
    with Ledger.open(path) as ledger:
        ledger.start_session(Config(), "autoresearch/main", "base", {})
        history = ledger.history()
        assert history.champion == "aaa"
        assert history.open_trial is not None
        ledger.record_run(make_run(history.next_run_id, "bbb"), history.open_trial.trial_id)
        decision = Decision(verdict=Verdict.DISCARD, reason="worse")
        ledger.close_trial(history.open_trial.trial_id, decision)
        assert ledger.open_trial(make_proposal(), "ccc") == 3
        ledger.stop_session("a person stopped it")
        assert not ledger.history().is_running
        assert len(ledger.history().sessions) == 2


def test_session_with_other_settings_is_refused(path: Path) -> None:
    """Another budget or baseline on the same branch would mix scores that do not compare."""
    write_session(path)
    with Ledger.open(path) as ledger:
        longer = override(Config(), trial={"budget_s": 7.0})
        with pytest.raises(WorkspaceError, match=r"trial.budget_s was 300.0 and is 7.0"):
            ledger.start_session(longer, "autoresearch/main", "base", {})
        with pytest.raises(WorkspaceError, match="the baseline was base and is other"):
            ledger.start_session(Config(), "autoresearch/main", "other", {})
        ledger.start_session(longer, "autoresearch/b", "other", {})
        assert ledger.history().champion == "other"
        assert ledger.history().trials == ()
        assert ledger.history().next_run_id == 6  # numbers are the workspace's, not the branch's
        assert ledger.history("autoresearch/main").champion == "aaa"
        assert ledger.open_trial(make_proposal(), "ddd") == 3


def test_closing_a_trial_twice_is_an_error(path: Path) -> None:
    """A verdict is given once, and only to a trial that exists."""
    write_session(path)
    with Ledger.open(path) as ledger:
        with pytest.raises(AutoresearchError, match="closed already"):
            ledger.close_trial(1, Decision(verdict=Verdict.DISCARD, reason=""))
        with pytest.raises(AutoresearchError, match="not known"):
            ledger.close_trial(9, Decision(verdict=Verdict.DISCARD, reason=""))


def test_same_program_is_found_by_its_tree(path: Path) -> None:
    """A trial is found by what its program does; an interrupted one may be tried again."""
    write_session(path)
    with Ledger.open(path) as ledger:
        tree = ledger_module.fingerprint("DEPTH = 4  # again\n")
        found = ledger.history().trial_like(tree)
        assert found is not None
        assert found.trial_id == 2
        ledger.close_trial(2, Decision(verdict=Verdict.INTERRUPTED, reason="Ctrl-C"))
        assert ledger.history().trial_like(tree) is None
        broken = make_proposal("broken", "def (")
        assert ledger.open_trial(broken, "eee") == 3


def test_refusals_and_notes_are_kept(path: Path) -> None:
    """What was never run and what else happened is in the record too."""
    write_session(path)
    with Ledger.open(path) as ledger:
        ledger.refuse_proposal(make_proposal("again"), "tried before")
        ledger.note("busy", "waited 20 s for the GPU")
        history = ledger.history()
        assert history.refusals[0].reason == "tried before"
        assert history.refusals[0].researcher == "tpe"
        assert history.num_proposals == 3
        assert history.notes[-1].kind == "note.busy"
        assert history.notes[-1].body == {"text": "waited 20 s for the GPU"}


def test_history_reads_each_event_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold over new events only: asking again costs nothing, one more event costs one."""
    write_session(path)
    with Ledger.open(path) as ledger:
        read: list[int] = []
        add = ledger._fold.add
        monkeypatch.setattr(ledger._fold, "add", lambda event: (read.append(event.seq), add(event)))
        ledger.history()
        assert len(read) == 10
        assert ledger.history() is ledger.history()
        ledger.record_run(make_run(6), None)
        ledger.history()
        assert len(read) == 11


def test_numbers_that_are_no_numbers_become_null(path: Path) -> None:
    """A NaN that a candidate reports must not make the record unreadable."""
    reported = {"loss": math.nan, "lrs": [math.inf, 0.1], "name": "x"}
    with Ledger.open(path) as ledger:
        ledger.record_run(make_run(1, val_bpb=math.nan, reported=reported), None)
        run = ledger.history().runs[0]
        assert run.val_bpb is None
        assert not run.is_scored
        assert run.reported == {"loss": None, "lrs": [None, 0.1], "name": "x"}


def test_text_with_any_characters_survives(path: Path) -> None:
    """Control characters, quotes and lone surrogates of a candidate's text come back."""
    text = "a'\"\\\x00\x1b[31m\ud800 \U0001f600"
    with Ledger.open(path) as ledger:
        ledger.note("odd", text)
        assert ledger.history().notes[0].body == {"text": text}
        assert ledger.verify() == 1


def test_views_answer_sql(path: Path) -> None:
    """The sqlite3 command can ask for trials and runs without knowing our JSON."""
    write_session(path)
    connection = sqlite3.connect(path)
    trials = connection.execute("SELECT trial_id, commit_id, verdict FROM trials").fetchall()
    assert trials == [(1, "aaa", "keep"), (2, "bbb", None)]
    runs = connection.execute("SELECT run_id, trial_id, purpose, outcome, val_bpb FROM runs")
    assert runs.fetchall()[2] == (3, 1, "screen", "scored", 2.03)
    connection.close()


def test_rows_cannot_be_changed_by_sql(path: Path) -> None:
    """An UPDATE or DELETE by hand is refused by the table itself."""
    write_session(path)
    connection = sqlite3.connect(path)
    for statement in ("UPDATE events SET kind = 'x'", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="only grows"):
            connection.execute(statement)
    connection.close()
    assert Ledger.read(path).verify() == 10


@given(seq=st.integers(1, 10), position=st.integers(0, 10_000), flip=st.integers(1, 127))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_changed_byte_of_a_body_is_found(
    tmp_path_factory: pytest.TempPathFactory, seq: int, position: int, flip: int
) -> None:
    """Flip any bits of any byte of any body: verify names that event."""
    path = tmp_path_factory.mktemp("tamper") / "ledger.sqlite"
    write_session(path)
    connection = sqlite3.connect(path)
    body = connection.execute("SELECT body FROM events WHERE seq = ?", (seq,)).fetchone()[0]
    connection.close()
    place = position % len(body)
    changed = body[:place] + chr(ord(body[place]) ^ flip) + body[place + 1 :]
    quoted = changed.encode().hex()
    tamper(path, f"UPDATE events SET body = CAST(x'{quoted}' AS TEXT) WHERE seq = {seq}")
    with pytest.raises(TrustViolation, match=rf"event {seq} "):
        Ledger.read(path).verify()


@pytest.mark.parametrize(
    ("statement", "seq"),
    [
        ("DELETE FROM events WHERE seq = 4", 4),
        ("DELETE FROM events WHERE seq = 1", 1),
        ("DELETE FROM events WHERE seq >= 9", 9),
        ("UPDATE events SET kind = 'crown' WHERE seq = 6", 6),
        ("UPDATE events SET at = at + 1 WHERE seq = 2", 2),
        ("UPDATE events SET previous = hash WHERE seq = 3", 3),
        ("UPDATE events SET hash = previous WHERE seq = 3", 3),
        ("UPDATE events SET seq = 77 WHERE seq = 10", 10),
        ("UPDATE events SET body = x'ff' WHERE seq = 5", 5),
    ],
)
def test_verify_names_the_first_bad_event(path: Path, statement: str, seq: int) -> None:
    """Removed, cut off, moved or altered in any column: the first bad number is named."""
    write_session(path)
    tamper(path, statement)
    with pytest.raises(TrustViolation, match=rf"event {seq} "):
        Ledger.read(path).verify()


def test_swapped_events_are_found(path: Path) -> None:
    """Two events that change places break the chain at the first of them."""
    write_session(path)
    tamper(
        path,
        "UPDATE events SET seq = 1000 WHERE seq = 4",
        "UPDATE events SET seq = 4 WHERE seq = 5",
        "UPDATE events SET seq = 5 WHERE seq = 1000",
    )
    with pytest.raises(TrustViolation, match="event 4 "):
        Ledger.read(path).verify()


def test_history_of_an_altered_ledger_names_the_event(path: Path) -> None:
    """A body that no longer makes sense is a trust violation, not a KeyError."""
    write_session(path)
    tamper(path, "UPDATE events SET body = '{}' WHERE seq = 5")
    with pytest.raises(TrustViolation, match="event 5 "):
        Ledger.read(path).history()


def test_event_that_fits_its_hash_but_not_its_kind_is_named(path: Path) -> None:
    """A well-chained event without sense (another program wrote it) is reported too."""
    with Ledger.open(path) as ledger:
        ledger.append("record_run", nonsense=1)
        with pytest.raises(TrustViolation, match="event 1 makes no sense"):
            ledger.history()


def start_python(script: str, path: Path) -> subprocess.Popen[str]:
    """Another process that runs `script` with the path of the ledger."""
    folder = str(Path(autoresearch.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": folder},
    )


def test_second_writer_is_refused_with_the_pid(path: Path) -> None:
    """Two sessions on one workspace: the second learns who holds it."""
    script = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from autoresearch.search.ledger import Ledger
        ledger = Ledger.open(Path(sys.argv[1]))
        ledger.note("from", "the holder")
        print(os.getpid(), flush=True)
        sys.stdin.read()
    """)
    with start_python(script, path) as holder:
        assert holder.stdout is not None
        pid = holder.stdout.readline().strip()
        with pytest.raises(WorkspaceError, match=pid):
            Ledger.open(path)
        assert len(list(Ledger.read(path).events())) == 1
        holder.kill()
    with Ledger.open(path) as ledger:  # the lock died with its holder
        assert ledger.verify() == 1


def test_reader_sees_events_while_the_writer_writes(path: Path) -> None:
    """A reader that stays open sees each event as soon as it is written, and cannot write."""
    with Ledger.open(path) as writer:
        writer.note("a", "first")
        with Ledger.read(path) as reader:
            assert len(reader.history().notes) == 1
            writer.note("b", "second")
            assert len(reader.history().notes) == 2
            with pytest.raises(AutoresearchError, match="readonly"):
                reader.note("c", "third")


def test_reading_what_is_not_there_names_the_command(path: Path) -> None:
    """No ledger, a file that is none, and one of a newer version: said in words."""
    with pytest.raises(WorkspaceError, match="autoresearch run"):
        Ledger.read(path)
    path.write_text("this is a text file, long enough to be looked at as a database")
    with pytest.raises(WorkspaceError, match="cannot be opened as a ledger"):
        Ledger.open(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(WorkspaceError, match=r"cannot be opened .*; free space or mend the perm"):
        Ledger.read(path)
    path.rmdir()
    write_session(path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    for method in (Ledger.open, Ledger.read):
        with pytest.raises(WorkspaceError, match="pip install -U"):
            method(path)


def test_a_file_whose_session_died_at_once_says_so(path: Path) -> None:
    """Nothing was recorded: no violation and no "no such table"; the next session goes on."""
    path.touch()
    path.with_name(path.name + ".new").write_text("half")
    with pytest.raises(WorkspaceError, match=r"nothing was recorded.*autoresearch run"):
        Ledger.read(path)
    with Ledger.open(path) as ledger:
        assert ledger.verify() == 0
    with Ledger.read(path) as ledger:
        assert ledger.branches() == []
    assert not list(path.parent.glob("*.new*"))


def test_older_schema_is_migrated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger of the first schema gets the later ones when it is opened for writing."""
    migrations = list(schema.MIGRATIONS)
    monkeypatch.setattr(schema, "MIGRATIONS", migrations[:1])
    with Ledger.open(path) as ledger:
        ledger.note("old", "event")
    monkeypatch.setattr(schema, "MIGRATIONS", migrations)
    with Ledger.open(path) as ledger:
        assert ledger.verify() == 1
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM trials").fetchone() == (0,)
    connection.close()


def test_a_full_disk_while_it_is_made_is_no_damage(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is there afterwards, and nothing is to be moved away."""
    monkeypatch.setattr(schema, "MIGRATIONS", ["INSERT INTO nowhere VALUES (1);"])
    with pytest.raises(
        WorkspaceError, match=r"cannot be opened as a ledger: .*; free space or mend"
    ):
        Ledger.open(path)
    assert not path.exists()


def test_full_disk_loses_nothing(path: Path) -> None:
    """An append that finds no room says so; what was there stays, and later appends work."""
    write_session(path)
    with Ledger.open(path) as ledger:
        pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(AutoresearchError, match="nothing finished was lost"):
            ledger.note("big", "x" * 100_000)
        assert ledger.verify() == 10
        assert len(ledger.history().runs) == 5
        ledger._connection.execute("PRAGMA max_page_count = 100000")
        ledger.note("big", "x" * 100_000)
        assert ledger.verify() == 11


def test_clock_that_jumps_back_changes_no_order(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events are ordered by their number, whatever the wall clock says."""
    times = iter([5000.0, 9000.0, 100.0, 5000.0])
    monkeypatch.setattr(ledger_module.time, "time", lambda: next(times))
    with Ledger.open(path) as ledger:
        for word in ("one", "two", "three", "four"):
            ledger.note(word, word)
        assert [note.body["text"] for note in ledger.history().notes] == [
            "one",
            "two",
            "three",
            "four",
        ]
        assert ledger.verify() == 4


def test_head_hash_stands_for_all_events(path: Path) -> None:
    """Equal events give equal heads only where everything before is equal; empty has a head."""
    with Ledger.open(path) as ledger:
        heads = {ledger.head_hash}
        for _ in range(3):
            ledger.note("same", "same")
            heads.add(ledger.head_hash)
        assert len(heads) == 4
        assert Ledger.read(path).verify() == 3


_WRITER = textwrap.dedent("""
    import sys
    from pathlib import Path
    from autoresearch.search.ledger import Ledger
    ledger = Ledger.open(Path(sys.argv[1]))
    for number in range(100_000):
        seq = ledger.append("note.load", text="x" * (number * 37 % 3000))
        print(seq, flush=True)
""")


@pytest.mark.parametrize("num_lines", [1, 40, 333])
def test_kill_in_the_middle_loses_nothing(path: Path, num_lines: int) -> None:
    """SIGKILL while events are appended: all acknowledged ones are there, and no half one."""
    with start_python(_WRITER, path) as writer:
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(num_lines)]
        writer.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout.read().splitlines() if line]
    with Ledger.open(path) as ledger:
        total = ledger.verify()
        assert total >= acknowledged[-1]
        assert [event.seq for event in ledger.events()] == list(range(1, total + 1))
        assert ledger.append("note.after", text="") == total + 1


def test_torn_log_loses_only_what_was_not_acknowledged(path: Path, tmp_path: Path) -> None:
    """Cut the write-ahead log at any place, as a power cut may: whole events remain, in order."""
    ledger = Ledger.open(path)
    for number in range(12):
        ledger.note("n", str(number))
    main, log = path.read_bytes(), path.with_name(path.name + "-wal").read_bytes()
    ledger.close()
    counts = []
    for length in range(0, len(log) + 1, max(1, len(log) // 25)):
        copy = tmp_path / f"cut{length}" / "ledger.sqlite"
        copy.parent.mkdir()
        copy.write_bytes(main)
        copy.with_name(copy.name + "-wal").write_bytes(log[:length])
        with Ledger.open(copy) as cut:
            counts.append(cut.verify())
            cut.note("goes", "on")
            assert cut.verify() == counts[-1] + 1
    assert counts == sorted(counts)


def test_config_may_be_a_dict_or_settings(path: Path) -> None:
    """The settings of a session are stored as they were, readable as plain JSON."""
    write_session(path)
    connection = sqlite3.connect(path)
    body = connection.execute("SELECT body FROM events WHERE seq = 1").fetchone()[0]
    connection.close()
    assert json.loads(body)["config"]["judge"]["policy"] == "screen"
    with Ledger.open(path) as ledger:
        config = Ledger.read(path).history().sessions[0].config
        ledger.start_session(config, "autoresearch/main", "base", {})
