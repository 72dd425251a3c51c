"""How much equal runs differ, and whether the machine drifts. Pure functions of the history.

Unpaired, the noise is the pooled standard deviation within commits of fresh runs (`FRESH`: nothing
was selected by them). Paired, it is the root mean square of differences between successive fresh
runs of one commit, which is the deviation of one pair of runs next to each other in time; slow
drift cancels. n successive differences overlap, so they are worth 2 n^2 / (3 n - 1) degrees of
freedom (from the variance of the mean square, for Gaussian noise without drift).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from autoresearch.search.history import FRESH, History
from autoresearch.values.config import JudgeSettings
from autoresearch.values.records import Measurement

_GAP_RUNS = 2.5  # runs of one length between two starts that still count as next to each other


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How much equal runs differ: `sigma_bpb` of one run, or of one pair where `is_paired`."""

    sigma_bpb: float
    degrees_of_freedom: int
    is_paired: bool = False

    @property
    def run_sigma_bpb(self) -> float:
        """The deviation of a single run."""
        return self.sigma_bpb / math.sqrt(2) if self.is_paired else self.sigma_bpb


def measure_noise(
    history: History, is_paired: bool = False, max_gap_s: float | None = None
) -> Noise:
    """How much fresh runs of one commit differ; the estimators are explained above.

    Successive runs count up to twice `max_gap_s` apart, the most that lies between two champion
    runs with a candidate between them. Zero degrees of freedom: not known yet.
    """
    groups: dict[str, list[Measurement]] = {}
    for run in history.runs:
        if run.purpose in FRESH and has_score(run):
            groups.setdefault(run.commit, []).append(run)
    if not is_paired:
        scores = [[score_of(run) for run in group] for group in groups.values()]
        squares = sum((x - statistics.fmean(xs)) ** 2 for xs in scores for x in xs)
        freedom = sum(len(xs) - 1 for xs in scores)
        sigma = math.sqrt(squares / freedom) if freedom else 0.0
        return Noise(sigma_bpb=sigma, degrees_of_freedom=freedom)
    gap = default_gap_s(history.runs) if max_gap_s is None else max_gap_s
    differences = [
        score_of(late) - score_of(early)
        for group in groups.values()
        for early, late in pairwise(group)
        if abs(late.at - early.at) <= 2 * gap
    ]
    num = len(differences)
    if not num:
        return Noise(sigma_bpb=0.0, degrees_of_freedom=0, is_paired=True)
    sigma = math.sqrt(statistics.fmean(d * d for d in differences))
    freedom = int(2 * num * num / (3 * num - 1))
    return Noise(sigma_bpb=sigma, degrees_of_freedom=freedom, is_paired=True)


def should_pair(settings: JudgeSettings, device: str, history: History) -> bool:
    """True where candidates are compared with champion runs next in time.

    `auto`: on CPU and MPS, which share the machine, and wherever drift shows.
    """
    if settings.pairing != "auto":
        return settings.pairing == "on"
    return not device.startswith("cuda") or shows_drift(history)


def shows_drift(history: History) -> bool:
    """True when fresh runs of a commit wander: successive ones are closer than chance makes them.

    Von Neumann's ratio of the mean square successive difference to the variance, on the level of
    about 1 %; a commit with fewer than eight fresh runs says nothing.
    """
    for commit in {run.commit for run in history.runs}:
        scores = [score_of(run) for run in history.runs_of(commit) if has_score(run)]
        num = len(scores)
        if num < 8:
            continue
        middle = statistics.fmean(scores)
        squares = sum((x - middle) ** 2 for x in scores)
        steps = sum((b - a) ** 2 for a, b in pairwise(scores))
        if squares and steps / squares < 2 - 2.33 * math.sqrt(4 * (num - 2) / (num * num - 1)):
            return True
    return False


def default_gap_s(runs: Sequence[Measurement]) -> float:
    """2.5 runs of median length: the longest gap between two starts that counts as a pair."""
    lengths = [run.total_s for run in runs if has_score(run) and run.total_s > 0]
    return _GAP_RUNS * statistics.median(lengths) if lengths else math.inf


def agrees(noise: Noise, first_bpb: float, second_bpb: float) -> bool:
    """True when two runs of one commit differ by at most three sigma of such a difference."""
    return abs(first_bpb - second_bpb) <= 3 * math.sqrt(2) * noise.run_sigma_bpb


def score_of(run: Measurement) -> float:
    """The score of a run, NaN where it has none."""
    return run.val_bpb if run.val_bpb is not None else math.nan


def has_score(run: Measurement) -> bool:
    """True when the run's score is a finite number."""
    return run.is_scored and math.isfinite(score_of(run))
