"""A referee that computes scores from a constant instead of training, and who watches it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from autoresearch.referee.scoring import Scoring
from autoresearch.system.clock import FakeClock
from autoresearch.values.config import Config
from autoresearch.values.errors import TrialFailed
from autoresearch.values.records import Measurement, Outcome

TRAIN = """\
SCORE = 2.0  # what the fake referee gives it [1.0, 3.0]
OUTCOME = "scored"  # how its runs end {"scored", "crash", "timeout", "cheat"}


def build_model(run):
    return None


def main(run):
    return None
"""
SCORING_S = 20.0
NOISE = (0.010, -0.010, 0.004, -0.006, 0.008, -0.004)


class FakeReferee:
    """Scores a run by the constants in its source, with a small fixed noise that cycles."""

    def __init__(self) -> None:
        clock = FakeClock()
        self.cached: list[str] = []  # commits whose compile caches were kept
        cache = SimpleNamespace(keep=lambda _, c: self.cached.append(c), sweep=lambda: None)
        sandbox = SimpleNamespace(level="bubblewrap")
        self.host: Any = SimpleNamespace(
            clock=clock,
            config=Config(),
            device="cuda:0",
            cache=cache,
            sandbox=sandbox,
            dataset=SimpleNamespace(digest="tiny"),
        )
        self.scoring = Scoring(self.host)
        self.limits_s: list[float] = []  # what each run was given to be scored in
        self.saved: list[int] = []
        self.audited: list[int] = []
        self.before: Callable[[Any], None] = lambda spec: None
        self.audit_failure: TrialFailed | None = None
        self.outcomes: list[Outcome] = []  # of the next runs, whatever their source says
        self.forgotten: set[int] = set()
        self.reported: dict[str, Any] = {}

    def run(self, spec: Any, watch: Any = lambda *_: "") -> Measurement:
        """As Referee.run, at once."""
        self.before(spec)
        self.limits_s.append(self.scoring.limit_s)
        self.host.clock.sleep(10.0)
        watch(5.0, {"step": 1})
        spec.artifacts.mkdir(parents=True)
        values = dict(re.findall(r"^(\w+) = (\S+)", spec.source, re.MULTILINE))
        outcome = self.outcomes.pop(0) if self.outcomes else Outcome(values["OUTCOME"].strip('"'))
        is_scored = outcome is Outcome.SCORED
        noise = NOISE[spec.run_id % len(NOISE)]
        return Measurement(
            run_id=spec.run_id,
            commit=spec.commit,
            purpose=spec.purpose,
            seed=spec.seed,
            outcome=outcome,
            reason="" if is_scored else f"ended as {outcome}",
            val_bpb=float(values["SCORE"]) + noise if is_scored else None,
            at=self.host.clock.wall(),
            scoring_s=SCORING_S if is_scored else 0.0,
            total_s=10.0,
            was_audited=spec.is_audited,
            reported=dict(self.reported),
            artifacts=spec.artifacts.name,
        )

    def has_weights(self, run_id: int) -> bool:
        """All but those that a test took away."""
        return run_id not in self.forgotten

    def save_weights(self, run_id: int, path: Path) -> None:
        """Remember which were saved."""
        self.saved.append(run_id)
        path.touch()

    def audit(self, run_id: int) -> dict[str, Any]:
        """Fine, unless a test says otherwise."""
        self.audited.append(run_id)
        if self.audit_failure:
            raise self.audit_failure
        return {"finding": ""}


class Watcher:
    """An observer that writes down the names of its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: self.calls.append(name)
