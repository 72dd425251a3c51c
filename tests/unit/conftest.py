"""A history of five trials, one of each kind, small enough to know by heart."""

from __future__ import annotations

from typing import Any

import pytest

from autoresearch.search.history import History, SessionStart
from autoresearch.search.noise import Noise
from autoresearch.values.records import Decision, Measurement, Outcome, Purpose, Trial, Verdict

BASELINE = "b" * 40
BUDGET_S, EVERY_S = 8.0, 14.0
KINDS = {
    1: ("head_lr 0.002 -> 0.004", Verdict.KEEP, [2.10, 2.12, 2.11, 2.13], 0.18),
    2: ("depth 2 -> 3", Verdict.DISCARD, [2.20], -0.08),
    3: ("warmdown 0.4 -> 0.6", Verdict.NEAR_MISS, [2.10, 2.115], 0.005),
    4: ("batch 32 -> 4096", Verdict.CRASH, [], None),
    5: ("softcap 15 -> 30", Verdict.TIMEOUT, [], None),
}
REASONS = {
    Verdict.CRASH: "out of memory",
    Verdict.TIMEOUT: "weights came 9.3 s after the start",
}


class Made:
    """Runs and trials with numbers and times that count up."""

    def __init__(self) -> None:
        self.runs: list[Measurement] = []

    def run(self, commit: str, purpose: Purpose, score: float | None, **more: Any) -> Measurement:
        """One run, 14 seconds after the one before."""
        number = len(self.runs) + 1
        values: dict[str, Any] = {
            "run_id": number,
            "commit": commit,
            "purpose": purpose,
            "seed": 100 + number,
            "outcome": Outcome.SCORED if score is not None else Outcome.CRASH,
            "val_bpb": score,
            "at": 1_700_000_000.0 + EVERY_S * number,
            "budget_s": BUDGET_S,
            "startup_s": 2.0,
            "training_s": BUDGET_S,
            "scoring_s": 1.0,
            "total_s": 11.5,
            "peak_memory_mb": 512.0,
            "sandbox": "bubblewrap",
            "device": "cpu",
            "artifacts": f"{number:06d}",
        }
        self.runs.append(Measurement(**{**values, **more}))
        return self.runs[-1]

    def trial(self, number: int, **more: Any) -> Trial:
        """Trial `number` of KINDS with its runs; those of the champion it became belong to none."""
        description, verdict, scores, gain = KINDS[number]
        commit = f"{number:x}" * 40
        purposes = [Purpose.SCREEN, Purpose.REPLICATE, Purpose.CHAMPION, Purpose.CHAMPION]
        runs = [self.run(commit, p, s) for p, s in zip(purposes, scores, strict=False)]
        if not scores:
            outcome = Outcome(verdict.value)
            runs = [self.run(commit, purposes[0], None, outcome=outcome, reason=REASONS[verdict])]
        decision = Decision(
            verdict=verdict,
            reason=REASONS.get(verdict, f"because of {description}"),
            val_bpb=scores[min(len(scores), 2) - 1] if scores else None,
            gain_bpb=gain,
            sigma_bpb=0.01,
        )
        values: dict[str, Any] = {
            "trial_id": number,
            "commit": commit,
            "parent": BASELINE if number == 1 else "1" * 40,
            "description": description,
            "researcher": "tpe",
            "parameters": {"HEAD_LR": 0.001 * number},
            "is_simplification": False,
            "at": runs[0].at,
            "runs": tuple(run for run in runs if run.purpose is not Purpose.CHAMPION),
            "decision": decision,
        }
        return Trial(**{**values, **more})


@pytest.fixture
def made() -> Made:
    """An empty bench to make runs and trials on."""
    return Made()


@pytest.fixture
def noise() -> Noise:
    """Noise that may be spoken of."""
    return Noise(sigma_bpb=0.01, degrees_of_freedom=11)


@pytest.fixture
def history(made: Made) -> History:
    """Six calibration runs around 2.3 and the five trials of KINDS."""
    for score in (2.29, 2.30, 2.31, 2.29, 2.30, 2.31):
        made.run(BASELINE, Purpose.CALIBRATE, score)
    trials = tuple(made.trial(number) for number in KINDS)
    host = {"device": "cpu", "sandbox": "bubblewrap", "cores": 2}
    return History(
        branch="autoresearch/main",
        baseline=BASELINE,
        champion="1" * 40,
        champion_trial_id=1,
        trials=trials,
        runs=tuple(made.runs),
        sessions=(SessionStart(seq=1, at=1_700_000_000.0, config={}, host=host),),
        next_run_id=len(made.runs) + 1,
    )
