"""A confirmation for real: stub candidates, the real scorer, a holdout that stays shut."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drive
import numpy as np
import pytest
from lab import BOS, CONTEXT, STUBS, VOCAB, Lab

from autoresearch.referee import scoring
from autoresearch.search.branch import Branch
from autoresearch.search.history import History
from autoresearch.search.ledger import Ledger
from autoresearch.search.researchers.scripted import ScriptedEdit, ScriptedResearcher
from autoresearch.search.session import Session
from autoresearch.values.config import override
from autoresearch.values.errors import Interrupted, TrustViolation
from autoresearch.values.records import Confirmation, Measurement, Outcome, Purpose, Verdict

RUNS = 4  # of each arm
CONFIRM = frozenset({Purpose.CONFIRM})


class Heard(drive.Silent):
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Bench:
    """A workspace of drive.py whose referee lives on between sessions."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.repository = drive.prepare(root)
        self.lab: Lab = drive.open_lab(root)
        self.holdout = self.lab.host.dataset.holdout_path
        self.heard = Heard()

    def session(self, ledger: Ledger, **tables: Any) -> Session:
        """A session over one edit that gains."""
        rules = {"policy": "greedy", "calibration_runs": 2, "implausible_gain_frac": 9.0}
        tables = {"judge": rules, "session": {"tag": "kill"}, "confirm": {"runs": RUNS}, **tables}
        config = override(self.lab.host.config, **tables)
        branch = Branch(self.repository, "kill")
        ledger.start_session(config, branch.name, branch.start(), {})
        script = ScriptedResearcher([ScriptedEdit(constants={"GAIN": 0.7})])
        referee = self.lab.referee
        return Session(config, ledger, branch, referee, script, self.heard, self.root / "runs")  # type: ignore[arg-type]

    def open(self) -> Ledger:
        """The right to write."""
        return Ledger.open(self.root / "ledger.sqlite")

    @property
    def history(self) -> History:
        """The ledger, read by somebody else."""
        with Ledger.read(self.root / "ledger.sqlite") as ledger:
            ledger.verify()
            return ledger.history()


@pytest.fixture
def _poor_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A baseline that is by far too sure of itself: that something is kept is no chance."""
    monkeypatch.setattr(drive, "TRAIN", drive.TRAIN.replace("GAIN = 0.3", "GAIN = 2.0"))


@pytest.fixture
def bench(tmp_path: Path, _poor_start: None) -> Iterator[Bench]:
    """A fresh one, with such a baseline."""
    bench = Bench(tmp_path)
    yield bench
    bench.lab.close()


def confirmed(bench: Bench) -> Confirmation:
    """Search without the holdout's file, then confirm with it."""
    aside = bench.holdout.with_suffix(".aside")
    bench.holdout.rename(aside)
    with bench.open() as ledger:
        bench.session(ledger).run()
        aside.rename(bench.holdout)
        return bench.session(ledger).confirm()


def test_a_real_gain_is_confirmed_and_one_bit_leaves_the_holdout(bench: Bench) -> None:
    """The session needs no holdout; what it scores there is in no file; caches were empty."""
    parents = []
    real = bench.lab.host.cache.fill
    bench.lab.host.cache.fill = lambda private, parent: (
        parents.append(parent),
        real(private, parent),
    )  # type: ignore[method-assign]
    harden_holdout(bench)
    confirmation = confirmed(bench)
    assert confirmation.decision is not None
    assert confirmation.decision.verdict is Verdict.CONFIRMED, confirmation.decision.reason
    assert confirmation.decision.reason.endswith("The sealed holdout agrees")
    history = bench.history
    assert history.last_confirmed == confirmation
    assert history.num_holdout_queries == 1
    runs = confirmation.runs
    assert [run.commit == history.champion for run in runs] == [False, True, True, False] * 2
    assert [run.was_audited for run in runs] == [False, True, True, False] * 2
    asked = 2 * RUNS * 3 + RUNS  # candidate, presenter and the holdout's; audits
    assert parents[-asked:] == [""] * asked
    assert not list((bench.root / "runs").glob("*/weights.safetensors"))[1:]
    scores = holdout_scores(bench, runs)
    everything = "\n".join(
        path.read_text(errors="replace")
        for path in bench.root.rglob("*")
        if path.is_file() and "data" not in path.parts
    )
    assert min(scores) > 2 * max(run.val_bpb for run in runs if run.val_bpb)
    for score in scores:
        assert f"{score:.4f}"[:6] not in everything + "\n".join(bench.heard.notes)


def harden_holdout(bench: Bench) -> None:
    """Tokens of one byte alone: scores there begin like no other figure of the session."""
    rows = np.fromfile(bench.holdout, dtype="<u2").reshape(-1, CONTEXT + 1)
    short = np.flatnonzero(np.load(bench.root / "data" / "token_bytes.npy") == 1)
    rows[:, 1:] = np.random.default_rng(0).choice(short, rows[:, 1:].shape)
    rows.tofile(bench.holdout)


def holdout_scores(bench: Bench, runs: tuple[Measurement, ...]) -> list[float]:
    """What the holdout said, worked out here: log frequencies stretched by GAIN."""
    rows = np.fromfile(bench.holdout, dtype="<u2").reshape(-1, CONTEXT + 1)[:, 1:]
    num_bytes = np.load(bench.root / "data" / "token_bytes.npy")[rows]
    train = np.concatenate(
        [np.fromfile(p, dtype="<u2") for p in bench.lab.host.dataset.train_shards]
    )
    counts = np.bincount(train, minlength=VOCAB)
    scores = []
    for run in runs:
        gain = 0.7 if run.commit == bench.history.champion else 2.0
        logits = np.log(counts + 0.5 + (run.seed % 97) / 97) * gain
        nats = np.log(np.exp(logits).sum()) - logits[rows]
        scores.append(float(nats[num_bytes > 0].sum() / np.log(2) / num_bytes.sum()))
    assert rows.min() > BOS
    return scores


def test_a_gain_that_the_holdout_does_not_show_is_not_confirmed(bench: Bench) -> None:
    """Text of tokens that are frequent in training, where overconfidence wins."""
    train = np.concatenate(
        [np.fromfile(p, dtype="<u2") for p in bench.lab.host.dataset.train_shards]
    )
    often = np.argsort(np.bincount(train, minlength=VOCAB)[1:])[-8:] + 1
    rows = np.random.default_rng(0).choice(often, (16, CONTEXT + 1)).astype("<u2")
    rows.tofile(bench.holdout)
    confirmation = confirmed(bench)
    assert confirmation.asked_holdout
    assert confirmation.decision is not None
    assert confirmation.decision.verdict is Verdict.UNCONFIRMED
    assert "holdout does not agree" in confirmation.decision.reason
    assert bench.history.num_holdout_queries == 1


@pytest.fixture
def _quick_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    """One without torch, to whom the holdout always agrees."""
    monkeypatch.setattr(scoring, "open_scorer", drive.open_stub_scorer)


@pytest.mark.usefixtures("_quick_scorer")
def test_ctrl_c_and_altered_weights(bench: Bench) -> None:
    """What has run counts when it goes on; weights that are not those scored are a violation."""
    with bench.open() as ledger:
        bench.session(ledger).run()
        session = bench.session(ledger)
        real = session.referee.run

        def run(spec: Any, watch: Any) -> Measurement:
            if len(history_of(ledger).runs_of(session.history.champion, CONFIRM)) == 1:
                session.interrupts.is_wanted = True
            return real(spec, watch)

        session.referee.run = run  # type: ignore[method-assign]
        with pytest.raises(Interrupted, match="autoresearch confirm"):
            session.confirm()
        session.referee.run = real  # type: ignore[method-assign]
        in_hand = ledger.history().open_confirmation
        assert in_hand is not None
        assert len(in_hand.runs) == 3
        weights = bench.root / "runs" / in_hand.runs[0].artifacts / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
        with pytest.raises(TrustViolation, match="somebody changed it"):
            bench.session(ledger).confirm()
        weights.unlink()
        confirmation = bench.session(ledger).confirm()
    assert [run.run_id for run in confirmation.runs[:3]] == [run.run_id for run in in_hand.runs]
    assert len(confirmation.runs) == 2 * RUNS + 1
    assert bench.history.num_holdout_queries == 1


def history_of(ledger: Ledger) -> History:
    """What the writer knows."""
    return ledger.history()


@pytest.mark.usefixtures("_quick_scorer")
def test_a_session_confirms_at_its_end(bench: Bench) -> None:
    """Where configured; nobody is asked twice about one champion."""
    with bench.open() as ledger:
        asked = {"at_end": True, "runs": RUNS}
        bench.session(ledger, confirm=asked).run()
        bench.session(ledger, confirm=asked).run()
    assert len(bench.history.confirmations) == 1
    assert any(note.startswith("confirmed: ") for note in bench.heard.notes)


def test_the_scorer_does_not_compare_what_it_was_not_shown(lab: Lab) -> None:
    """One that was started again has forgotten: disturbed, so all is asked again."""
    from autoresearch.values.errors import TrialFailed

    with pytest.raises(TrialFailed) as failure:
        lab.referee.scoring.compare_held({"champion": [-1], "reference": [-2]}, 0.1)
    assert failure.value.outcome is Outcome.DISTURBED


@pytest.mark.usefixtures("_poor_start")
def test_kill_9_loses_no_run_that_had_ended(tmp_path: Path) -> None:
    """Killed twice in the middle of a confirmation, a session of its own process ends it."""
    drive.prepare(tmp_path)
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2] / "src"), str(STUBS)]),
        "DRIVE_CONFIRMS": "1",
    }
    command = [sys.executable, str(drive.__file__), str(tmp_path), "3"]
    seen: list[int] = []
    for wanted in (1, 4):
        session = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
        limit = time.monotonic() + 60.0
        while len(confirm_runs(tmp_path)) < wanted and session.poll() is None:
            assert time.monotonic() < limit
            time.sleep(0.05)
        session.send_signal(signal.SIGKILL)
        session.wait()
        assert confirm_runs(tmp_path)[: len(seen)] == seen
        seen = confirm_runs(tmp_path)
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, timeout=90)
    assert confirm_runs(tmp_path)[: len(seen)] == seen
    with Ledger.read(tmp_path / "ledger.sqlite") as ledger:
        ledger.verify()
        (confirmation,) = ledger.history().confirmations
    assert confirmation.decision is not None
    assert len({run.run_id for run in confirmation.runs}) == 6


def confirm_runs(folder: Path) -> list[int]:
    """The runs of confirmations on the disk."""
    path = folder / "ledger.sqlite"
    try:
        with Ledger.read(path) as ledger:
            return [run.run_id for run in ledger.history().runs if run.purpose is Purpose.CONFIRM]
    except Exception:  # noqa: BLE001 - it is being made
        return []
