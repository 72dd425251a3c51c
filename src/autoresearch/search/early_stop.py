"""Early stop: a run whose training loss is hopeless ends early. Pure functions, and their watch.

The budget is fixed, so curves compare at equal seconds. A screening run is *marked* when its
reported loss is above the limit twice in a row between 25 % and 80 % of the budget. The limit at a
second is the 90th percentile of the good curves there and a margin, the larger of two: twice the
standard deviation of curves of one commit (what equal runs differ by, the machine's changing speed
included), and by how much more than the good curves one finished curve in ten still fell from
there to its end (curves cross). Everywhere each commit counts once, however often it ran. Nine in
ten marked runs end there; the tenth runs on and shows whether the mark was wrong. After eight ends
in ten trials the rule switches itself off.

Good curves are those of the champion, and of whatever it does not clearly beat (by three sigma)
among the baseline, kept trials, and trials that their score brought to a second run: what was left
far behind says nothing of what is hopeless now. The loss is the candidate's word, and this is all
that a lie can win: who reports too little runs to the end and gets the score that the referee
measures. To lower the limit for others a curve has to belong to a commit that earned a second run
by its score, its end must agree with that score to 10 % as the baseline's does, and then it is one
vote among all commits, at the wrong end of a 90th percentile; and what it claims too early it falls
too little later, which widens the margin. What is lost all the same shows in the spared tenth.
"""

from __future__ import annotations

import math
import secrets
import statistics
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autoresearch.search.history import History
from autoresearch.search.noise import has_score, measure_noise, score_of
from autoresearch.values.config import JudgeSettings
from autoresearch.values.records import Decision, Measurement, Outcome, Purpose, Trial, Verdict

GRID = 40  # moments of the budget at which curves are compared
FIRST_FRAC, LAST_FRAC = 0.25, 0.80
PERCENTILE = 0.90
MARGIN_SIGMAS = 2.0
BEATEN_SIGMAS = 3.0  # a commit that the champion beats by more is no example any more
END_AGREES_FRAC = 0.10  # how far a curve's end over its score may be from the baseline's
ONE_IN = 10  # of marked runs goes on to its end
WINDOW_TRIALS, MOST_STOPPED = 10, 8
_IN_A_ROW = 2
_FEWEST_POINTS = 4
_FEWEST_FREEDOM = 5
_FEWEST_COMMITS = 5
_MOST_REPLAYED = 100

Curve = Sequence[tuple[float, float]]
Losses = tuple[float | None, ...]  # at each moment of the grid that is looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Above which loss a run is hopeless, at each moment of the grid; None: not known there."""

    seconds: tuple[float, ...]
    losses: Losses
    num_curves: int
    num_commits: int

    def at(self, second: float) -> float | None:
        """The limit at `second`, None outside the time in which runs are stopped."""
        known = [(s, x) for s, x in zip(self.seconds, self.losses, strict=True) if x is not None]
        return loss_at(known, second)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A finished run, and its losses on the grid."""

    run: Measurement
    is_good: bool
    losses: Losses


@dataclass(frozen=True, slots=True, kw_only=True)
class FalseKills:
    """How often a mark was wrong, with an exact 95 % interval.

    `num_wrong` of `num_spared` marked runs that went on to their end earned a second run.
    """

    num_stopped: int
    num_spared: int
    num_wrong: int
    low: float
    high: float


def loss_at(curve: Curve, second: float) -> float | None:
    """The loss at `second`, between the points beside it; None before the first, after the last."""
    if not curve or not curve[0][0] <= second <= curve[-1][0]:
        return None
    right = bisect_left(curve, second, key=lambda point: point[0])
    (after, high) = curve[right]
    if after == second or right == 0:
        return high
    (before, low) = curve[right - 1]
    return low + (high - low) * (second - before) / (after - before)


def watched_seconds(budget_s: float) -> tuple[float, ...]:
    """The moments of the grid between the first and the last at which a run may be stopped."""
    moments = range(math.ceil(FIRST_FRAC * GRID), math.floor(LAST_FRAC * GRID) + 1)
    return tuple(budget_s * moment / GRID for moment in moments)


def finished_runs(history: History) -> list[Measurement]:
    """Runs with a score whose curves end as scores say, by the baseline's example."""
    runs = [run for run in history.runs if has_score(run) and len(run.curve) >= _FEWEST_POINTS]
    ends = [_end_over_score(run) for run in runs if run.commit == history.baseline]
    if not ends:
        return []
    middle = statistics.median(ends)
    return [r for r in runs if abs(_end_over_score(r) / middle - 1) <= END_AGREES_FRAC]


def good_runs(history: History) -> list[Measurement]:
    """Those of the finished runs whose commits are the baseline or earned a second run."""
    good = _good_commits(history)
    return [run for run in finished_runs(history) if run.commit in good]


def is_good(trial: Trial) -> bool:
    """True when a trial's first score was good enough for a second run, or it was kept."""
    if trial.decision is not None and trial.decision.verdict is Verdict.KEEP:
        return True
    earned = any(run.purpose is Purpose.REPLICATE and run.is_scored for run in trial.runs)
    return earned and not trial.is_simplification


def make_limits(history: History, budget_s: float, fewest: int) -> Limits | None:
    """What a run is held against; None while fewer than `fewest` runs have finished."""
    seconds = watched_seconds(budget_s)
    return _limits(_rows(history, seconds), seconds, fewest)


def _rows(history: History, seconds: Sequence[float]) -> list[_Row]:
    good = _good_commits(history)
    return [
        _Row(
            run=run,
            is_good=run.commit in good,
            losses=tuple(loss_at(run.curve, second) for second in seconds),
        )
        for run in finished_runs(history)
    ]


def _limits(rows: Sequence[_Row], seconds: tuple[float, ...], fewest: int) -> Limits | None:
    good = [row for row in rows if row.is_good]
    if len(rows) < fewest or len({row.run.commit for row in rows}) < _FEWEST_COMMITS:
        return None
    return Limits(
        seconds=seconds,
        losses=tuple(_limit(rows, i) for i in range(len(seconds))),
        num_curves=len(good),
        num_commits=len({row.run.commit for row in good}),
    )


def _limit(rows: Sequence[_Row], i: int) -> float | None:
    """The limit at one moment; None where the spread of equal runs is not known."""
    known = [(row, loss) for row in rows if (loss := row.losses[i]) is not None]
    votes = Counter(row.run.commit for row, _ in known)
    groups: defaultdict[str, list[float]] = defaultdict(list)
    losses, falls, good_falls = [], [], []
    for row, loss in known:
        vote = 1 / votes[row.run.commit]
        falls.append((loss - row.run.curve[-1][1], vote))
        if row.is_good:
            losses.append((loss, vote))
            good_falls.append(falls[-1])
            groups[row.run.commit].append(loss)
    if len(losses) - len(groups) < _FEWEST_FREEDOM:
        return None
    spreads = [statistics.variance(group) for group in groups.values() if len(group) > 1]
    sigma = math.sqrt(statistics.fmean(spreads))
    late = percentile(falls, PERCENTILE) - percentile(good_falls, 0.5)
    return percentile(losses, PERCENTILE) + max(MARGIN_SIGMAS * sigma, late)


def find_mark(curve: Curve, limits: Limits) -> float | None:
    """The second at which the rule would have marked a finished curve; None: never."""
    in_a_row = 0
    for second, limit in zip(limits.seconds, limits.losses, strict=True):
        loss = loss_at(curve, second)
        is_above = loss is not None and limit is not None and loss > limit
        in_a_row = in_a_row + 1 if is_above else 0
        if in_a_row >= _IN_A_ROW:
            return second
    return None


def replay(history: History, budget_s: float, fewest: int) -> tuple[int, int]:
    """Good curves, and how many of them the rule would have marked, each held against the others.

    What the margin is calibrated by: it should mark next to none of these. The latest 100 are
    looked at.
    """
    seconds = watched_seconds(budget_s)
    rows = _rows(history, seconds)
    looked_at = [i for i, row in enumerate(rows) if row.is_good][-_MOST_REPLAYED:]
    num_marks = 0
    for i in looked_at:
        limits = _limits(rows[:i] + rows[i + 1 :], seconds, fewest)
        if limits is None:
            return 0, 0
        num_marks += find_mark(rows[i].run.curve, limits) is not None
    return len(looked_at), num_marks


def count_false_kills(history: History) -> FalseKills:
    """Marked runs by what became of them."""
    marked = [(t, run) for t in history.trials for run in t.runs if run.early_stop]
    stopped = sum(run.outcome is Outcome.STOPPED for _, run in marked)
    spared = [trial for trial, run in marked if run.outcome is Outcome.SCORED and trial.decision]
    wrong = sum(is_good(trial) for trial in spared)
    low, high = interval(wrong, len(spared))
    return FalseKills(
        num_stopped=stopped, num_spared=len(spared), num_wrong=wrong, low=low, high=high
    )


def interval(successes: int, tries: int) -> tuple[float, float]:
    """The exact (Clopper-Pearson) 95 % interval of a rate; 0 to 1 without a try."""
    if not tries:
        return 0.0, 1.0
    from scipy import stats

    found = stats.binomtest(successes, tries).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)


def stops_too_much(history: History) -> str:
    """Why early stop switches itself off, or "": 8 of the last 10 trials of this session."""
    since = history.sessions[-1].at if history.sessions else 0.0
    closed = [t for t in history.trials if t.decision is not None and t.at >= since]
    last = closed[-WINDOW_TRIALS:]
    stopped = sum(any(run.outcome is Outcome.STOPPED for run in trial.runs) for trial in last)
    if stopped < MOST_STOPPED or is_switched_off(history):
        return ""
    return f"early stop is off for this session: it ended {stopped} of the last {len(last)} trials"


def is_switched_off(history: History) -> bool:
    """True when the last session has noted that early stop ends too much."""
    since = history.sessions[-1].seq if history.sessions else 0
    return any(note.kind == "note.early_stop" and note.seq > since for note in history.notes)


def judge_stopped(runs: Sequence[Measurement]) -> Decision | None:
    """The verdict on a trial whose last run was stopped early: no score, and nothing proven."""
    if not runs or runs[-1].outcome is not Outcome.STOPPED:
        return None
    return Decision(verdict=Verdict.DISCARD, reason=runs[-1].reason)


class EarlyStop:
    """Watches the runs of a session, one after the other."""

    def __init__(
        self,
        settings: JudgeSettings,
        budget_s: float,
        is_spared: Callable[[], bool] = lambda: secrets.randbelow(ONE_IN) == 0,
    ) -> None:
        self._settings = settings
        self._budget_s = budget_s
        self._is_spared = is_spared
        self._limits: Limits | None = None
        self._mark: dict[str, Any] = {}
        self._num_above = 0

    def begin(self, history: History, purpose: Purpose) -> None:
        """A run begins; only a first run of a candidate is ever stopped."""
        self._limits, self._mark, self._num_above = None, {}, 0
        is_on = self._settings.early_stop == "on" and not is_switched_off(history)
        if is_on and purpose is Purpose.SCREEN:
            fewest = self._settings.early_stop_curves
            self._limits = make_limits(history, self._budget_s, fewest)

    def look(self, elapsed_s: float, telemetry: Mapping[str, Any]) -> str:
        """Why the run should end now, or ""; `telemetry` is what the candidate has just said."""
        loss = telemetry.get("loss")
        limit = self._limits.at(elapsed_s) if self._limits else None
        if limit is None or self._mark or not isinstance(loss, int | float):
            return ""
        self._num_above = self._num_above + 1 if loss > limit else 0
        if self._num_above < _IN_A_ROW or self._limits is None:
            return ""
        is_spared = self._is_spared()
        self._mark = {"second": elapsed_s, "loss": loss, "limit": limit, "is_spared": is_spared}
        if is_spared:
            return ""
        num_curves, num_commits = self._limits.num_curves, self._limits.num_commits
        among = f"{num_curves} curves of {num_commits} commit{'s' if num_commits > 1 else ''}"
        return (
            f"stopped early at {elapsed_s:.1f} s: reported loss {loss:.4g}, more than {limit:.4g}, "
            f"the limit at this second from {among}"
        )

    def sign(self, measurement: Measurement) -> Measurement:
        """The measurement with the mark that its run got, if it got one."""
        return replace(measurement, early_stop=dict(self._mark))


def _end_over_score(run: Measurement) -> float:
    return run.curve[-1][1] / score_of(run)


def _good_commits(history: History) -> set[str]:
    """The champion, and what it does not clearly beat of baseline, kept and replicated trials."""
    scores: defaultdict[str, list[float]] = defaultdict(list)
    for run in filter(has_score, history.runs):
        scores[run.commit].append(score_of(run))
    known = {history.baseline} | {trial.commit for trial in history.trials if is_good(trial)}
    if history.champion not in scores:
        return known
    beaten_by_bpb = BEATEN_SIGMAS * measure_noise(history).sigma_bpb
    most_bpb = statistics.fmean(scores[history.champion]) + beaten_by_bpb
    near = {
        commit for commit in known & scores.keys() if statistics.fmean(scores[commit]) <= most_bpb
    }
    return {history.champion} | near


def percentile(weighted: Sequence[tuple[float, float]], frac: float) -> float:
    """The smallest value at or under which at least `frac` of all weight lies."""
    total, passed = sum(weight for _, weight in weighted), 0.0
    for value, weight in sorted(weighted):
        passed += weight
        if passed >= frac * total * (1 - 1e-12):
            return value
    raise ValueError("a percentile of nothing: expected at least one value with a weight")
