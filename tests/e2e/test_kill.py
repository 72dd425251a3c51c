"""kill -9 at any moment, of anybody: nothing finished is lost, nobody is left, it goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from lab import HONEST, STUBS, Lab, stub

from autoresearch.referee import scoring
from autoresearch.referee.trial import Referee
from autoresearch.search.ledger import Event, Ledger
from autoresearch.search.researchers.scripted import ScriptedEdit, ScriptedResearcher
from autoresearch.system.git import Repository
from autoresearch.values.records import Measurement, Outcome, Verdict

DRIVE = STUBS / "drive.py"
PATIENCE_S = 300.0  # a machine may be busy with something else


def start(folder: Path, max_trials: int) -> subprocess.Popen[bytes]:
    """A session as a process of its own."""
    source = str(Path(__file__).parents[2] / "src")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([source, str(STUBS)])}
    return subprocess.Popen(
        [sys.executable, str(DRIVE), str(folder), str(max_trials)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(session: subprocess.Popen[bytes]) -> str:
    """What a session that was left alone printed."""
    output, _ = session.communicate(timeout=PATIENCE_S)
    assert session.returncode == 0, output.decode()
    return output.decode()


def living(folder: Path) -> list[str]:
    """Command lines of processes that have to do with `folder`, besides this one."""
    found = []
    for process in psutil.process_iter(["cmdline", "status", "pid"]):
        words = " ".join(process.info["cmdline"] or [])
        is_dead = process.info["status"] == psutil.STATUS_ZOMBIE
        if str(folder) in words and process.info["pid"] != os.getpid() and not is_dead:
            found.append(words[:200])
    return found


def assert_nobody_left(folder: Path) -> None:
    """Everything that a killed session had started goes with it."""
    limit = time.monotonic() + PATIENCE_S
    while (left := [*living(folder), *strangers()]) and time.monotonic() < limit:
        time.sleep(0.02)
    assert left == []


def events_of(folder: Path) -> list[Event]:
    """All that is on the disk, checked."""
    path = folder / "ledger.sqlite"
    if not path.exists():
        return []
    with Ledger.read(path) as ledger:
        ledger.verify()
        return list(ledger.events())


def check_the_end(folder: Path, num_trials: int) -> None:
    """Every trial has its verdict, its runs and its ref; the branch is at the champion."""
    with Ledger.read(folder / "ledger.sqlite") as ledger:
        history = ledger.history()
    assert len(history.trials) == num_trials
    assert [trial.trial_id for trial in history.trials] == list(range(1, num_trials + 1))
    assert history.open_trial is None
    run_ids = [run.run_id for run in history.runs]
    assert len(set(run_ids)) == len(run_ids)
    repository = Repository(folder / "workspace")
    for trial in history.trials:
        assert trial.decision is not None
        if trial.decision.verdict in (Verdict.KEEP, Verdict.DISCARD):
            was_given_up = trial.decision.reason.startswith("not judged: the machine was disturbed")
            assert was_given_up or any(run.is_scored for run in trial.runs)
        ref = f"refs/autoresearch/kill/trials/{trial.trial_id:04d}"
        assert repository.resolve(ref) == trial.commit
    assert repository.resolve("refs/heads/autoresearch/kill") == history.champion
    assert not list((folder / "state" / "cache").glob("private-*"))
    for run in history.runs:
        assert (folder / "runs" / run.artifacts / "measurement.json").is_file()


@pytest.mark.timeout(2 * PATIENCE_S)
def test_a_session_killed_again_and_again_comes_to_its_end(tmp_path: Path) -> None:
    """At random moments, alone or with the git that it runs; after every death the record is whole
    and only grew, nobody lives on.
    """
    rng = random.Random(os.urandom(8))
    known: list[Event] = []
    for moment in [0.4, *(rng.uniform(0.6, 2.5) for _ in range(5))]:
        session = start(tmp_path, max_trials=6)
        time.sleep(moment)
        if rng.random() < 0.5:
            session.kill()
        else:
            os.killpg(session.pid, signal.SIGKILL)
        session.communicate()
        assert_nobody_left(tmp_path)
        events = events_of(tmp_path)
        assert events[: len(known)] == known
        known = events
    assert "trials are done" in finish(start(tmp_path, max_trials=6))
    assert events_of(tmp_path)[: len(known)] == known
    check_the_end(tmp_path, 6)
    assert_nobody_left(tmp_path)


def test_a_second_session_is_turned_away(tmp_path: Path) -> None:
    """While the first is at work; the first does not notice."""
    first = start(tmp_path, max_trials=3)
    limit = time.monotonic() + PATIENCE_S
    while not any(event.kind == "record_run" for event in events_of(tmp_path)):
        assert time.monotonic() < limit
        time.sleep(0.05)
    second = start(tmp_path, max_trials=3)
    output, _ = second.communicate(timeout=PATIENCE_S)
    assert second.returncode != 0
    assert str(first.pid) in output.decode()
    finish(first)
    check_the_end(tmp_path, 3)


class Assassin:
    """Kills the first process of a kind that shows up, a while after its work has begun."""

    def __init__(self, word: str, delay_s: float) -> None:
        self.word = word
        self.delay_s = delay_s
        self.killed: list[int] = []
        self._thread = threading.Thread(target=self._hunt, daemon=True)
        self._is_over = False

    def __enter__(self) -> Assassin:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join()

    def _victims(self) -> list[psutil.Process]:
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                words = process.cmdline()
                if "bwrap" not in words[0] and any(self.word in word for word in words):
                    found.append(process)
            except (psutil.Error, IndexError):
                continue
        return found

    def _hunt(self) -> None:
        while not self._is_over and not self.killed:
            victims = self._victims()
            if victims:
                time.sleep(self.delay_s)
            for victim in victims:
                try:
                    victim.kill()
                    self.killed.append(victim.pid)
                except psutil.Error:
                    continue
            time.sleep(0.002)


SLOW = stub(
    main="import time\nrun.start()\ntime.sleep(0.5)\nrun.submit(Unigram.train(run))",
    model="import time\ntime.sleep(0.1)\nreturn super().answer(tokens)",
)


def own_processes() -> list[tuple[int, str]]:
    """What descends from this process, zombies not counted: pids and command lines."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append((process.pid, " ".join(process.cmdline())))
        except psutil.Error:
            continue
    return found


def strangers() -> list[tuple[int, str]]:
    """What descends from this process besides the module's scorer."""
    return [(pid, words) for pid, words in own_processes() if "referee.scorer" not in words]


@pytest.fixture(autouse=True)
def _nobody_left() -> Iterator[None]:
    """After each test nothing runs but the module's scorer."""
    yield
    limit = time.monotonic() + 20.0
    while (left := strangers()) and time.monotonic() < limit:
        time.sleep(0.02)
    assert left == []


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("role", ["candidate", "presenter"])
def test_a_killed_candidate_or_presenter_is_a_crash(lab: Lab, role: str, delay_s: float) -> None:
    """As if the machine's memory had run out; the next run is scored."""
    with Assassin(f"stubinside.{role}", delay_s) as assassin:
        measurement = lab.run(SLOW)
    assert assassin.killed
    assert measurement.outcome is Outcome.CRASH, measurement
    assert measurement.val_bpb is None
    words = "the candidate ended" if role == "candidate" else "process that answers the scorer died"
    assert words in measurement.reason
    assert lab.run(HONEST).outcome is Outcome.SCORED


def score_without(lab: Lab, delay_s: float) -> Measurement:
    """A run whose scorer is killed `delay_s` after the candidate reported."""
    (pid,) = [pid for pid, words in own_processes() if "referee.scorer" in words]

    def strike() -> None:
        time.sleep(delay_s)
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=strike)
    thread.start()
    measurement = lab.run(SLOW, is_audited=True)
    thread.join()
    return measurement


@pytest.mark.parametrize("delay_s", [0.1, 1.2])
def test_a_killed_scorer_disturbs_the_run_and_is_replaced(lab: Lab, delay_s: float) -> None:
    """It is not the candidate's fault, while it trains or while it is scored."""
    assert lab.run(HONEST).outcome is Outcome.SCORED
    measurement = score_without(lab, delay_s)
    assert measurement.outcome is Outcome.DISTURBED, measurement
    assert measurement.val_bpb is None
    assert lab.run(HONEST, is_audited=True).outcome is Outcome.SCORED


def test_an_audit_whose_first_presentation_died_with_the_scorer_is_disturbed(lab: Lab) -> None:
    """A fresh scorer cannot compare; that is no finding against the candidate."""
    from autoresearch.values.errors import TrialFailed

    measurement = lab.run(HONEST)
    lab.referee.scoring.close()
    lab.run(HONEST)
    with pytest.raises(TrialFailed) as failure:
        lab.referee.audit(measurement.run_id)
    assert failure.value.outcome is Outcome.DISTURBED
    assert not lab.referee.has_weights(measurement.run_id)


def test_a_scorer_that_dies_before_the_audit_costs_one_more_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept was audited all the same; the session goes on."""
    import drive

    audited = []
    real = Referee.audit

    def audit(self: Referee, run_id: int) -> dict[str, object]:
        audited.append(run_id)
        if len(audited) == 1:
            self.scoring.close()
        return real(self, run_id)

    better = [ScriptedEdit(constants={"GAIN": 1.0})]
    monkeypatch.setattr(drive, "RandomResearcher", lambda seed: ScriptedResearcher(better))
    monkeypatch.setattr(Referee, "audit", audit)
    monkeypatch.setattr(scoring, "open_scorer", scoring.open_scorer)  # put back what main() sets
    monkeypatch.setattr(sys, "argv", ["drive.py", str(tmp_path), "1"])
    drive.main()
    with Ledger.read(tmp_path / "ledger.sqlite") as ledger:
        (trial,) = ledger.history().trials
    assert trial.decision is not None
    assert trial.decision.verdict is Verdict.KEEP
    assert [run.was_audited for run in trial.runs][-1]
    assert len(trial.runs) == 2
