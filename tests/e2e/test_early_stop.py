"""Early stop through a real session of stubs: git, ledger, referee and sandbox are real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from drive import Silent, open_stub_scorer
from lab import Lab

from autoresearch.referee import scoring
from autoresearch.search.branch import Branch
from autoresearch.search.early_stop import EarlyStop
from autoresearch.search.history import History
from autoresearch.search.ledger import Ledger
from autoresearch.search.researchers.scripted import ScriptedEdit, ScriptedResearcher
from autoresearch.search.session import Session
from autoresearch.system.git import Repository
from autoresearch.values.config import override
from autoresearch.values.records import Outcome, Verdict

TRAIN = """
import time

from stubinside import Unigram as build_model

LOSS = 4.0  # what it says at its end [0.0, 9.0]
TAIL_S = 0.0  # seconds of training after that [0.0, 9.0]


def main(run):
    run.start()
    for i in range(25):
        run.report(step=i, loss=LOSS + 0.5 * (1 - i / 24))
        time.sleep(0.02)
    time.sleep(TAIL_S)
    run.submit(build_model.train(run))
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a script of constants in a session; returns the history."""
    monkeypatch.setattr(scoring, "open_scorer", open_stub_scorer)
    lab = Lab(tmp_path, budget_s=1.0)
    judge = {"policy": "greedy", "calibration_runs": 6, "early_stop_curves": 6, "audit_frac": 0.0}
    (tmp_path / "workspace").mkdir()
    repository = Repository.create(tmp_path / "workspace")
    (tmp_path / "workspace" / "train.py").write_text(TRAIN)
    repository.commit_files(["train.py"], "start")

    def _work(*edits: dict[str, Any], is_spared: bool = False, **more: Any) -> History:
        config = override(lab.host.config, judge={**judge, **more})
        branch = Branch(repository, "t")
        script = ScriptedResearcher([ScriptedEdit(constants=edit) for edit in edits])
        runs = tmp_path / "runs"
        with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
            ledger.start_session(config, branch.name, branch.start(), {})
            session = Session(config, ledger, branch, lab.referee, script, Silent(), runs)
            session.early_stop = EarlyStop(config.judge, 1.0, lambda: is_spared)
            session.run()
            return ledger.history()

    yield _work
    lab.close()


def test_a_hopeless_trial_ends_early_and_a_spared_one_does_not(work: Any) -> None:
    """Stopped: a discard, no score, the reason, the curve. Spared: a score, and the mark."""
    edits = [{"TAIL_S": 0.01 * i} for i in range(1, 5)]
    edits.append({"LOSS": 8.0})
    history = work(*edits)
    assert all(r.is_scored for t in history.trials[:-1] for r in t.runs)
    trial = history.trials[-1]
    (run,) = trial.runs
    assert run.outcome is Outcome.STOPPED, run
    assert run.reported["step"] < 24
    assert run.val_bpb is None
    assert all(len(r.curve) > 8 for r in history.runs_of(history.baseline))
    assert run.curve[-1][1] > 8
    assert trial.decision is not None
    assert trial.decision.verdict is Verdict.DISCARD
    assert trial.decision.val_bpb is None
    assert trial.decision.reason.startswith("stopped early at ")
    edits.append({"LOSS": 8.5})
    history = work(*edits, is_spared=True)
    run = history.trials[-1].runs[0]
    assert run.is_scored
    assert run.early_stop["is_spared"] is True
    history = work(*edits, {"LOSS": 7.0}, early_stop="off")
    run = history.trials[-1].runs[0]
    assert run.is_scored
    assert run.early_stop == {}
