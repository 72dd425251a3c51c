"""Optuna's tree-structured Parzen estimator (TPE) over the searchable constants.

The study is built anew from the ledger's trials for every proposal, so there is no second record
that could disagree, and a resumed session proposes what the dead one would have.

A train.py has some thirty constants and a short search ten trials. The first eight trials take
turns: Gaussian steps of a random quarter to two thirds of the constants from the champion, and
draws of all constants from their ranges, which leave a poor start faster. From then on the
estimator chooses the values of such a random share, seeing only the constants that are to move. On
a noisy quadratic in the constants of our train.py this share closed more than twice as much of the
gap in 40 trials as joint draws did (runs/tpe_table.py, with steps alone in the first trials).

A run that early stop ended has no score, and none is made up: it is worse than the good ones, by
how much nobody knows. The study gets it as a pruned trial with the loss it had, which the estimator
ranks behind every trial with a score.
"""

from __future__ import annotations

import math
import random
import statistics
import warnings
from collections.abc import Mapping
from typing import Any

from autoresearch.search.history import FRESH, History
from autoresearch.search.noise import has_score, score_of
from autoresearch.search.researchers.space import (
    draw,
    propose_values,
    searchable_constants,
    step,
    tidy,
)
from autoresearch.values.constants import Constant
from autoresearch.values.records import Outcome, Proposal, Trial, Verdict

_NUM_FIRST = 8  # trials before the estimator takes over: steps and draws in turn
_MOVED_FRAC = (1 / 4, 2 / 3)  # of the constants, in one proposal
_CRASH_PERCENTILE = 90  # of all scores: what a run without a score counts as
_FAILED = (Verdict.CRASH, Verdict.TIMEOUT)

Point = tuple[Mapping[str, Any], float]  # constants and score
Pruned = tuple[Mapping[str, Any], int, float]  # constants, second of the end, loss at the time


class TpeResearcher:
    """Steps and draws first, then TPE; the same seed and history give the same proposal."""

    name = "tpe"

    def __init__(self, *, seed: int = 0) -> None:
        self._seed = seed

    def propose(self, history: History, champion_commit: str, champion_source: str) -> Proposal:
        """Some constants moved from the champion's values."""
        constants = searchable_constants(champion_source)
        rng = random.Random(f"{self._seed}/{history.num_proposals}")  # noqa: S311 - no secret
        points, pruned = known_points(history), pruned_points(history)
        num_known = len(points) + len(pruned)
        least, most = (max(1, round(frac * len(constants))) for frac in _MOVED_FRAC)

        def draw_values() -> dict[str, Any]:
            if num_known <= _NUM_FIRST and history.num_proposals % 2:
                return {name: draw(constant, rng) for name, constant in constants.items()}
            names = rng.sample(sorted(constants), rng.randint(least, most))
            moved = {name: constants[name] for name in names}
            if num_known <= _NUM_FIRST:
                return {name: step(constant, rng) for name, constant in moved.items()}
            return _suggest(moved, points, pruned, rng.getrandbits(31))

        return propose_values(self.name, history, (champion_commit, champion_source), draw_values)


def known_points(history: History) -> list[Point]:
    """Constants and score of the baseline and of every finished trial that has constants, in order.

    A trial's score is the mean of its fresh runs where it became champion, else what it gained on
    the mean of its parent's: what the machine's speed was at the moment drops out where the gain
    was measured in pairs. A run without a score counts as the 90th percentile of all scores.
    """
    means = _fresh_means(history)
    points: list[Point] = []
    if history.baseline_constants and history.baseline in means:
        points.append((history.baseline_constants, means[history.baseline]))
    scored = list(points)
    for trial in history.trials:
        score = _trial_score(trial, means)
        if trial.parameters is None or trial.decision is None:
            continue
        if score is not None:
            scored.append((trial.parameters, score))
        elif trial.decision.verdict in _FAILED:
            score = math.nan
        points += [(trial.parameters, score)] if score is not None else []
    if not scored:
        return []
    scores = sorted(score for _, score in scored)
    penalty = scores[_CRASH_PERCENTILE * (len(scores) - 1) // 100]
    return [(values, penalty if math.isnan(score) else score) for values, score in points]


def pruned_points(history: History) -> list[Pruned]:
    """What early stop ended, with the loss that it was ended for."""
    return [
        (trial.parameters, round(run.early_stop["second"]), run.early_stop["loss"])
        for trial in history.trials
        for run in trial.runs
        if trial.parameters is not None and run.outcome is Outcome.STOPPED and run.early_stop
    ]


def _fresh_means(history: History) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for run in history.runs:
        if run.purpose in FRESH and has_score(run):
            scores.setdefault(run.commit, []).append(score_of(run))
    return {commit: statistics.fmean(values) for commit, values in scores.items()}


def _trial_score(trial: Trial, means: Mapping[str, float]) -> float | None:
    decision = trial.decision
    if decision is None or decision.val_bpb is None:
        return None
    if trial.commit in means:
        return means[trial.commit]
    if trial.parent in means and decision.gain_bpb is not None:
        return means[trial.parent] - decision.gain_bpb
    return decision.val_bpb


def _suggest(
    moved: Mapping[str, Constant], points: list[Point], pruned: list[Pruned], seed: int
) -> dict[str, Any]:
    """Values that TPE expects to score well, out of what is known about these constants."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(multivariate=True, n_startup_trials=0, seed=seed)
            study = optuna.create_study(direction="minimize", sampler=sampler)
            ranges = {name: _distribution(constant) for name, constant in moved.items()}
            known: list[tuple[Mapping[str, Any], dict[str, Any]]] = [
                (parameters, {"value": score}) for parameters, score in points
            ]
            state = optuna.trial.TrialState.PRUNED
            for parameters, second, loss in pruned:
                known.append((parameters, {"state": state, "intermediate_values": {second: loss}}))
            for parameters, result in known:
                values = _fit(moved, parameters)
                if values is not None:
                    study.add_trial(
                        optuna.trial.create_trial(params=values, distributions=ranges, **result)
                    )
            chosen = study.ask(fixed_distributions=ranges).params
    finally:
        optuna.logging.set_verbosity(verbosity)
    return {name: tidy(constant, chosen[name]) for name, constant in moved.items()}


def _distribution(constant: Constant) -> Any:
    import optuna

    if constant.choices:
        return optuna.distributions.CategoricalDistribution(constant.choices)
    low, high = constant.bounds
    if constant.is_int:
        return optuna.distributions.IntDistribution(int(low), int(high), log=constant.is_log)
    return optuna.distributions.FloatDistribution(low, high, log=constant.is_log)


def _fit(moved: Mapping[str, Constant], parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """The point in this space; None where a choice is gone. A new constant had its value."""
    values: dict[str, Any] = {}
    for name, constant in moved.items():
        value = parameters.get(name, constant.value)
        if constant.choices and value not in constant.choices:
            return None
        if not constant.choices and type(value) not in (int, float):
            return None
        values[name] = value if constant.choices else constant.clip(value)
    return values
