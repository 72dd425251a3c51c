"""Compares researchers on a simulated train.py: how much of a gap they close in 10, 20, 40 trials.

Hardware: one CPU core. Time: about 6 minutes for 20 seeds. Expected figures: see below.

The space is that of the shipped train.py. The score is a quadratic in the constants (places in
their ranges, heavy-tailed weights, a few interactions), a small effect for each choice, and
Gaussian noise of 0.0155 bpb; four of the ten weightiest constants start far from their best value.
All choices of the real loop are the real code: researchers, judge (`screen`, paired), history.

    python runs/tpe_table.py [--seeds 20] [--trials 40]

    researcher  gap after 10  gap after 20  gap after 40  +-  runs a trial
    random  0.288  0.282  0.264  0.015  1.53
    tpe  0.244  0.183  0.153  0.006  1.78
"""

from __future__ import annotations

import argparse
import math
import statistics
from importlib import resources
from typing import Any

import numpy as np

from autoresearch.search.history import Event, Fold
from autoresearch.search.judge import Need, next_champion_run_due, next_step
from autoresearch.search.noise import measure_noise
from autoresearch.search.researchers import Researcher
from autoresearch.search.researchers.random import RandomResearcher
from autoresearch.search.researchers.space import from_unit, searchable_constants, to_unit
from autoresearch.search.researchers.tpe import TpeResearcher
from autoresearch.values.config import JudgeSettings
from autoresearch.values.constants import parse_constants, substitute
from autoresearch.values.records import Measurement, Outcome, Purpose, to_json

NOISE_BPB = 0.0155  # between seeds at the demo's size
GAP_BPB = 0.30  # from the start to the best
RULES = JudgeSettings(pairing="on", implausible_gain_frac=0.3)


class World:
    """A machine and a model that cost nothing: the score of a train.py from its constants."""

    def __init__(self, seed: int) -> None:
        source = resources.files("autoresearch").joinpath("templates/train.py").read_text("utf-8")
        constants = searchable_constants(source)
        self._rng = np.random.default_rng(seed)
        self._ranges = {n: c for n, c in constants.items() if not c.choices}
        names = list(self._ranges)
        weights = np.arange(1, len(names) + 1) ** -1.2
        self._rng.shuffle(weights)
        self._weights = dict(zip(names, weights / weights.sum(), strict=True))
        self._best = {
            n: float(np.clip(to_unit(c, c.clip(c.value)) + self._rng.normal(0, 0.2), 0.02, 0.98))
            for n, c in self._ranges.items()
        }
        weighty = sorted(names, key=lambda n: -self._weights[n])[:10]
        start: dict[str, Any] = {}
        for name in self._rng.choice(weighty, 4, replace=False):
            best = self._best[name]
            far = best + 0.45 if best < 0.5 else best - 0.45
            start[str(name)] = from_unit(self._ranges[name], far)
        self._pairs = list(zip(*(self._rng.permutation(names)[:8] for _ in range(2)), strict=True))
        self._signs = self._rng.normal(0, 0.25, len(self._pairs))
        self._choices = {
            n: dict(zip(c.choices, np.abs(self._rng.normal(0, 0.01, len(c.choices))), strict=True))
            for n, c in constants.items()
            if c.choices
        }
        self._scale = 1.0
        self.baseline = substitute(source, start)
        self._scale = GAP_BPB / self._distance(self._values(self.baseline))
        self._scores: dict[str, float] = {}

    def score(self, source: str) -> float:
        """The true score, without noise; NaN where the model would diverge."""
        if source not in self._scores:
            self._scores[source] = self._compute(self._values(source))
        return self._scores[source]

    def _compute(self, values: dict[str, Any]) -> float:
        gap = self._distance(values) * self._scale
        if gap > 5 * GAP_BPB:
            return math.nan
        slow = gap if gap < 0.6 else 0.6 + math.log(gap + 0.4)
        return 2.0 + slow + sum(costs[values[n]] for n, costs in self._choices.items())

    def measure(self, source: str) -> float:
        """One run."""
        return self.score(source) + float(self._rng.normal(0, NOISE_BPB))

    def _values(self, source: str) -> dict[str, Any]:
        return {name: constant.value for name, constant in parse_constants(source).items()}

    def _distance(self, values: dict[str, Any]) -> float:
        off = {n: to_unit(c, c.clip(values[n])) - self._best[n] for n, c in self._ranges.items()}
        plain = sum(self._weights[n] * off[n] ** 2 for n in off)
        mixed = sum(
            sign * math.sqrt(self._weights[a] * self._weights[b]) * off[a] * off[b]
            for (a, b), sign in zip(self._pairs, self._signs, strict=True)
        )
        return max(plain + mixed, 0.0)


class Simulation:
    """One session: the real researcher and judge on a simulated machine."""

    def __init__(self, world: World, researcher: Researcher) -> None:
        self._world, self._researcher = world, researcher
        self._fold = Fold()
        self._sources = {"base": world.baseline}
        constants = {n: c.value for n, c in parse_constants(world.baseline).items()}
        self._add(
            "start_session", branch="b", baseline="base", config={}, host={}, constants=constants
        )

    def play(self, num_trials: int) -> tuple[list[float], int]:
        """True gap of the champion after each trial, and the number of runs."""
        curve = []
        while due := next_champion_run_due(RULES, self._fold.history(), 0.0, is_paired=True):
            self._run("base", due.purpose, None)
        for trial_id in range(1, num_trials + 1):
            self._play_trial(trial_id)
            champion = self._sources[self._fold.history().champion]
            curve.append(self._world.score(champion) - 2.0)
        return curve, len(self._fold.history().runs)

    def _play_trial(self, trial_id: int) -> None:
        history = self._fold.history()
        champion, commit = history.champion, f"c{trial_id}"
        proposal = self._researcher.propose(history, champion, self._sources[champion])
        self._sources[commit] = proposal.source
        fields = to_json(proposal)
        del fields["source"]
        self._add("open_trial", trial_id=trial_id, commit=commit, fingerprint="", **fields)
        while True:
            history = self._fold.history()
            trial = history.trial(trial_id)
            noise = measure_noise(history, is_paired=True)
            answer = next_step(
                RULES, noise, history.runs_of(champion), trial.runs if trial else (), is_paired=True
            )
            if not isinstance(answer, Need):
                break
            who = commit if answer.who == "candidate" else champion
            self._run(who, answer.purpose, trial_id)
        self._add("close_trial", trial_id=trial_id, decision=to_json(answer))
        if answer.verdict == "keep":
            self._add("crown", commit=commit, trial_id=trial_id)

    def _run(self, commit: str, purpose: Purpose, trial_id: int | None) -> None:
        run_id = self._fold.history().next_run_id
        score = self._world.measure(self._sources[commit])
        run = Measurement(
            run_id=run_id,
            commit=commit,
            purpose=purpose,
            seed=run_id,
            outcome=Outcome.CRASH if math.isnan(score) else Outcome.SCORED,
            val_bpb=None if math.isnan(score) else score,
            at=10.0 * run_id,
            total_s=10.0,
        )
        self._add("record_run", run=to_json(run), trial_id=trial_id)

    def _add(self, kind: str, **body: Any) -> None:
        self._fold.add(Event(seq=self._fold.seq + 1, at=0.0, kind=kind, body=body))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=40)
    options = parser.parse_args()
    marks = [mark for mark in (10, 20, 40, 100) if mark <= options.trials]
    print("researcher", *(f"gap after {mark}" for mark in marks), "+-", "runs a trial", sep="  ")
    for researcher in (RandomResearcher, TpeResearcher):
        games = [
            Simulation(World(seed), researcher(seed=seed)).play(options.trials)
            for seed in range(options.seeds)
        ]
        curves = [curve for curve, _ in games]
        gaps = [f"{statistics.fmean(curve[mark - 1] for curve in curves):.3f}" for mark in marks]
        last = [curve[-1] for curve in curves]
        error = statistics.stdev(last) / math.sqrt(len(last)) if len(last) > 1 else math.nan
        num_runs = statistics.fmean(runs for _, runs in games) / options.trials
        print(researcher.name, *gaps, f"{error:.3f}", f"{num_runs:.2f}", sep="  ", flush=True)


if __name__ == "__main__":
    main()
