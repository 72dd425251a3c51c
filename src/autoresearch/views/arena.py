"""arena.md, arena.png and results.json: what researchers gained from one baseline.

Two gains, and they differ on purpose. The *judged* gain adds up what the judge measured at each
keep: it is there after every trial, and having been selected makes it too good. The *fresh* gain
is the mean of paired runs of the last champion and the baseline, made afterwards.

Intervals are 95 % Student intervals of the mean over repeats; one repeat has none. They say how
much another set of repeats would differ, on this machine, baseline and text.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from autoresearch.search.history import History
from autoresearch.values.records import Verdict
from autoresearch.views.digest import FAILED, closed_trials, kept_trials, verdict_of
from autoresearch.views.text import markdown, signed


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One researcher's one repeat.

    `closes` are the hours at work when each trial closed, `pairs` fresh scores of (baseline,
    champion).
    """

    researcher: str
    repeat: int
    history: History = field(default_factory=History)
    hours: float = 0.0
    closes: tuple[float, ...] = ()
    pairs: tuple[tuple[float, float], ...] = ()
    cost_usd: float = 0.0

    def count(self, *verdicts: Verdict) -> int:
        """How many of its trials ended so."""
        return sum(verdict_of(trial) in verdicts for trial in self.history.trials)

    @property
    def judged_gain(self) -> float:
        """What the judge measured at each keep, added up."""
        trials = kept_trials(self.history)
        return math.fsum(t.decision.gain_bpb or 0.0 for t in trials if t.decision)

    @property
    def fresh_gain(self) -> float | None:
        """Mean of the fresh pairs; 0 where the baseline is the champion, None where none ran."""
        if self.pairs:
            return statistics.fmean(baseline - champion for baseline, champion in self.pairs)
        is_over = bool(self.closes) and self.history.champion == self.history.baseline
        return 0.0 if is_over else None

    def curve(self, *, by_hours: bool) -> list[tuple[float, float]]:
        """(trials or hours, judged gain so far), from (0, 0) on."""
        points, gained = [(0.0, 0.0)], 0.0
        for number, trial in enumerate(closed_trials(self.history), start=1):
            if trial.decision and trial.decision.verdict is Verdict.KEEP:
                gained += trial.decision.gain_bpb or 0.0
            x = self.closes[number - 1] if by_hours else float(number)
            points.append((x, gained))
        return points


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over repeats with its 95 % interval; the ends are None where there is none."""

    mean: float
    low: float | None
    high: float | None
    num: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{signed(self.mean)} ({self.num} repeat)"
        return f"{signed(self.mean)} [{signed(self.low)}, {signed(self.high)}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One researcher over its repeats; counts are sums, hours and cost too."""

    researcher: str
    repeats: int
    trials: int
    kept: int
    no_score: int
    runs: int
    hours: float
    cost_usd: float
    judged_gain: Estimate | None
    fresh_gain: Estimate | None
    fresh_gains: tuple[float | None, ...]


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and Student interval of `values`; None of none."""
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean=mean, low=None, high=None, num=1)
    from scipy.special import stdtrit  # a picture asks 120 times a researcher; scipy.stats is slow

    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, 0.975)) * error
    return Estimate(mean=mean, low=mean - half, high=mean + half, num=len(values))


def tabulate(entries: Sequence[Entry]) -> list[Row]:
    """A row for each researcher, the largest fresh (else judged) gain first."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.researcher, []).append(entry)
    rows = [_row(name, group) for name, group in groups.items()]
    return sorted(rows, key=_rank, reverse=True)


def _rank(row: Row) -> float:
    best = row.fresh_gain or row.judged_gain
    return best.mean if best else -math.inf


def _row(researcher: str, entries: Sequence[Entry]) -> Row:
    begun = [entry for entry in entries if entry.closes]
    fresh = [entry.fresh_gain for entry in begun]
    return Row(
        researcher=researcher,
        repeats=len(begun),
        trials=sum(len(entry.closes) for entry in begun),
        kept=sum(entry.count(Verdict.KEEP) for entry in begun),
        no_score=sum(entry.count(*FAILED) for entry in begun),
        runs=sum(len(entry.history.runs) for entry in begun),
        hours=sum(entry.hours for entry in begun),
        cost_usd=sum(entry.cost_usd for entry in begun),
        judged_gain=estimate([entry.judged_gain for entry in begun]),
        fresh_gain=estimate([gain for gain in fresh if gain is not None]),
        fresh_gains=tuple(fresh),
    )


_COLUMNS = (
    *("researcher", "repeats", "trials", "kept", "no score", "runs", "hours", "cost"),
    *("judged gain", "fresh gain"),
)


def arena_markdown(entries: Sequence[Entry], rules: Mapping[str, Any], state: str) -> str:
    """The page: what was played, the table, what it does not show."""
    budget = f"{rules['hours']:g} hours" if rules["hours"] else f"{rules['trials']} trials"
    lines = [
        "# Arena",
        "",
        f"Preset {markdown(rules['preset'])}, {budget} each, {rules['repeats']} repeats, "
        f"{rules['rounds']} fresh pairs for each champion. {state}",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---|" + "---:|" * (len(_COLUMNS) - 1),
    ]
    for row in tabulate(entries):
        cells = [
            *(markdown(row.researcher), row.repeats, row.trials, row.kept, row.no_score, row.runs),
            *(f"{row.hours:.2f}", f"${row.cost_usd:.2f}"),
            *(str(row.judged_gain or "-"), str(row.fresh_gain or "-")),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", "![gain by trial, and fresh gains](arena.png)", "", *_NOTES, ""])


_NOTES = (
    "Gains are in val_bpb below the baseline, means over repeats with 95 % intervals. The judged",
    "gain adds up what was measured at each keep and is too good, because it was selected by; the",
    "fresh gain is from pairs of new runs afterwards. Intervals that overlap tell no order. All of",
    "it holds for this baseline, budget, text and machine; gains on validation text that chose the",
    "champions, not on the holdout.",
)


def arena_json(
    entries: Sequence[Entry], rules: Mapping[str, Any], problems: Mapping[str, str], is_done: bool
) -> dict[str, Any]:
    """The same as numbers, with every curve and every pair."""
    by_hours = bool(rules["hours"])
    return {
        "rules": dict(rules),
        "is_complete": is_done,
        "problems": dict(problems),
        "table": [asdict(row) for row in tabulate(entries)],
        "entries": [
            {
                "researcher": entry.researcher,
                "repeat": entry.repeat,
                "judged_gain": entry.judged_gain,
                "fresh_gain": entry.fresh_gain,
                "pairs": entry.pairs,
                "curve": entry.curve(by_hours=by_hours),
            }
            for entry in entries
        ],
    }
