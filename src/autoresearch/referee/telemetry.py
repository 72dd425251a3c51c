"""What a candidate says while it trains: kept and shown, never taken as a result.

Of the training loss a short curve is kept, by the referee's clock, for early stop to compare with
others. A loss that is not a number, or that rises far above what it was, ends the run at once: all
that a candidate can reach by reporting one falsely is its own end.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

from autoresearch.values.text import plain_values

MOST_REPORTED = 64  # different names of telemetry in one run
CURVE_POINTS = 40
DIVERGED_AFTER_FRAC = 0.1  # of the budget: the first steps of a run may go astray and come back
DIVERGED_NATS, DIVERGED_FACTOR = 3.0, 1.5  # above the lowest loss so far; both must be exceeded
_IN_A_ROW = 2  # reports: a single step that overflows may be skipped by the trainer itself
_FEWEST_STEP_TIMES = 8


class Telemetry:
    """One run's telemetry, as it arrives."""

    def __init__(self, budget_s: float) -> None:
        self.reported: dict[str, Any] = {}
        self.divergence = ""  # why the run should end at once
        self._budget_s = budget_s
        self._points: list[tuple[float, float]] = []
        self._last: tuple[float, float] | None = None
        self._lowest = math.inf
        self._num_bad = 0
        self._steps: tuple[float, float] | None = None  # second and number of the last step told
        self._step_times: list[float] = []

    def keep(self, claimed: Any) -> dict[str, Any]:
        """The plain values of what was claimed, kept as far as there is room for their names."""
        values = plain_values(claimed)
        for name, value in values.items():
            if name in self.reported or len(self.reported) < MOST_REPORTED:
                self.reported[name] = value
        return values

    def note(self, elapsed_s: float, claimed: Any) -> dict[str, Any]:
        """As `keep`, for a report that arrived `elapsed_s` after the start."""
        values = self.keep(claimed)
        step = to_number(values.get("step"))
        if math.isfinite(step):
            self._note_step(elapsed_s, step)
        if "loss" in values:
            self._note_loss(elapsed_s, to_number(values["loss"]))
        return values

    @property
    def curve(self) -> tuple[tuple[float, float], ...]:
        """Seconds since the start and losses, at most `CURVE_POINTS` and the last one."""
        is_new = self._last is not None and self._last not in self._points[-1:]
        return (*self._points, self._last) if is_new and self._last else tuple(self._points)

    @property
    def step_jitter(self) -> float | None:
        """How unevenly steps came: from the first to the ninth tenth of step times, over the
        median.
        """
        if len(self._step_times) < _FEWEST_STEP_TIMES:
            return None
        tenths = statistics.quantiles(self._step_times, n=10)
        return (tenths[-1] - tenths[0]) / statistics.median(self._step_times)

    def _note_step(self, elapsed_s: float, step: float) -> None:
        before = self._steps
        self._steps = (elapsed_s, step)
        if before is not None and step > before[1]:
            self._step_times.append((elapsed_s - before[0]) / (step - before[1]))

    def _note_loss(self, elapsed_s: float, loss: float) -> None:
        is_late = elapsed_s > DIVERGED_AFTER_FRAC * self._budget_s
        limit = max(self._lowest + DIVERGED_NATS, self._lowest * DIVERGED_FACTOR)
        is_bad = not math.isfinite(loss) or (is_late and loss > limit)
        self._num_bad = self._num_bad + 1 if is_bad else 0
        if self._num_bad >= _IN_A_ROW:
            was = f", it was {self._lowest:.4g}" if math.isfinite(self._lowest) else ""
            self.divergence = f"diverged: train.py reports a loss of {loss:.4g}{was}"
        if not math.isfinite(loss):
            return
        self._lowest = min(self._lowest, loss)
        self._last = (round(elapsed_s, 3), round(loss, 5))
        if not self._points or self._last[0] >= self._points[-1][0] + self._budget_s / CURVE_POINTS:
            self._points.append(self._last)


def to_number(value: Any) -> float:
    """What a candidate gave as a number; NaN for everything that is none."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
