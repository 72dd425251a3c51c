"""The figures that every view shows, worked out once from the history.

Two rules keep them honest. A commit's score is the mean of its fresh runs (those never selected on)
as soon as it has any; the screening and deciding runs of a trial count only until then. And where
the noise was estimated with fewer than `FEW` degrees of freedom, views give the range of the runs
and no statistical word.

Where candidates are judged side by side with champion runs (paired, because the machine drifts),
the plain difference between champion and baseline holds the drift too; the gains at each keep do
not, and are added up beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from autoresearch.search.early_stop import count_false_kills
from autoresearch.search.history import History
from autoresearch.search.noise import Noise, has_score, measure_noise, score_of, should_pair
from autoresearch.values.config import Config
from autoresearch.values.records import Measurement, Trial, Verdict

FEW = 5
"""Degrees of freedom under which a spread is not called sigma."""

FAILED = (Verdict.CRASH, Verdict.TIMEOUT, Verdict.CHEAT, Verdict.INTERRUPTED)
"""Verdicts of trials that have no score."""

_PAUSE_S = 900.0  # nothing ran for longer than this and three budgets: nobody was at work


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The mean of some runs of one commit."""

    mean_bpb: float
    num_runs: int
    low_bpb: float
    high_bpb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """One history in figures; None where there is nothing to tell yet."""

    baseline: Score | None
    champion: Score | None
    gain_bpb: float | None
    gain_error_bpb: (
        float | None
    )  # standard error of the gain; None where paired, and where little is known
    kept_gain_bpb: float | None  # the gains of all keeps added up; only where paired
    kept_gain_error_bpb: float | None
    sigma_bpb: float | None  # of one run; None with few degrees of freedom
    counts: dict[Verdict, int]
    num_closed: int
    num_runs: int
    training_s: float
    active_s: float  # first run to last, pauses taken out
    trials_per_hour: float | None


def score_runs(runs: Iterable[Measurement]) -> Score | None:
    """The mean of the runs that have a score."""
    values = [score_of(run) for run in runs if has_score(run)]
    if not values:
        return None
    return Score(
        mean_bpb=math.fsum(values) / len(values),
        num_runs=len(values),
        low_bpb=min(values),
        high_bpb=max(values),
    )


def score_commit(history: History, commit: str | None) -> Score | None:
    """The mean of all fresh runs of a commit."""
    return score_runs(history.runs_of(commit)) if commit else None


def score_trial(trial: Trial, history: History) -> Score | None:
    """Fresh runs of its commit, else what the judge decided on; None for a trial without a score.

    Only what was kept has fresh runs. They are the champion's, and belong to no trial.
    """
    verdict = verdict_of(trial)
    if verdict in FAILED:
        return None
    fresh = score_commit(history, trial.commit) if verdict is Verdict.KEEP else None
    if fresh is not None:
        return fresh
    judged = score_runs(trial.runs)
    value = trial.decision.val_bpb if trial.decision is not None else None
    if value is None or not math.isfinite(value):
        return judged
    if judged is not None and math.isclose(value, judged.mean_bpb):
        return judged
    return Score(mean_bpb=value, num_runs=1, low_bpb=value, high_bpb=value)  # the last run decided


def closed_trials(history: History) -> list[Trial]:
    """The trials that have a verdict, in order."""
    return [trial for trial in history.trials if trial.decision is not None]


def verdict_of(trial: Trial) -> Verdict | None:
    """The verdict, or None while the trial is in hand."""
    return trial.decision.verdict if trial.decision is not None else None


def kept_trials(history: History) -> list[Trial]:
    """The trials that became champion, in order."""
    return [trial for trial in history.trials if verdict_of(trial) is Verdict.KEEP]


def find_champion(history: History) -> Score | None:
    """The champion's score: its fresh runs, else those of the trial that made it champion."""
    fresh = score_commit(history, history.champion)
    if fresh is None:
        for trial in history.trials:
            if trial.trial_id == history.champion_trial_id:
                return score_trial(trial, history)
    return fresh


def active_seconds(history: History) -> float:
    """Time between the first and the last run, without the pauses in which nobody was at work."""
    spans = sorted(
        (run.at - run.startup_s, run.at + run.training_s + run.scoring_s) for run in history.runs
    )
    longest_budget_s = max((run.budget_s for run in history.runs), default=0.0)
    total, end = 0.0, spans[0][0] if spans else 0.0
    for start, stop in spans:
        gap = start - end
        if gap <= max(_PAUSE_S, 3 * longest_budget_s):
            total += max(0.0, gap)
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def find_noise(history: History, config: Config) -> Noise:
    """The noise as the judge sees it: of single runs, or of pairs."""
    device = history.runs[-1].device if history.runs else config.trial.device
    return measure_noise(history, should_pair(config.judge, device, history))


def early_stop_words(history: History) -> str:
    """What early stop ended, and how often it was wrong where that was looked at; "" for nothing.

    Wrong is a mark on a run that, gone on to its end, earned a second one.
    """
    kills = count_false_kills(history)
    if not kills.num_stopped + kills.num_spared:
        return ""
    words = f"{kills.num_stopped} ended early"
    if not kills.num_spared:
        return f"{words}; no marked run has gone on to its end yet: false kills unknown"
    chance = f"95 % interval {kills.low:.0%} to {kills.high:.0%}"
    return f"{words}; false kills {kills.num_wrong} of {kills.num_spared} that ran on ({chance})"


def measure(history: History, noise: Noise) -> Digest:
    """Everything that `status` and the report need."""
    baseline, champion = score_commit(history, history.baseline), find_champion(history)
    closed = closed_trials(history)
    is_known = noise.degrees_of_freedom >= FEW
    has_gain = (
        baseline is not None and champion is not None and history.champion != history.baseline
    )
    gain = error = kept_gain = kept_error = None
    if has_gain and baseline and champion:
        gain = baseline.mean_bpb - champion.mean_bpb
        if noise.is_paired:
            gains = [
                trial.decision.gain_bpb or 0.0 for trial in kept_trials(history) if trial.decision
            ]
            kept_gain = math.fsum(gains)
            kept_error = noise.sigma_bpb * math.sqrt(len(gains)) if is_known else None
        elif is_known:
            error = noise.sigma_bpb * math.sqrt(1 / baseline.num_runs + 1 / champion.num_runs)
    active_s = active_seconds(history)
    counts = Counter(verdict for trial in closed if (verdict := verdict_of(trial)) is not None)
    return Digest(
        baseline=baseline,
        champion=champion,
        gain_bpb=gain,
        gain_error_bpb=error,
        kept_gain_bpb=kept_gain,
        kept_gain_error_bpb=kept_error,
        sigma_bpb=noise.run_sigma_bpb if is_known else None,
        counts={verdict: counts[verdict] for verdict in Verdict if counts[verdict]},
        num_closed=len(closed),
        num_runs=len(history.runs),
        training_s=sum(run.training_s for run in history.runs),
        active_s=active_s,
        trials_per_hour=3600 * len(closed) / active_s if closed and active_s > 0 else None,
    )
