"""arena.png: on the left the judged gain so far, on the right the fresh gains of the champions.

Thin lines are repeats, the thick one their mean, the band its 95 % interval. On the right a dot is
a repeat, the bar mean and interval.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from autoresearch.views.arena import Entry, estimate, tabulate
from autoresearch.views.labels import INK
from autoresearch.views.text import clean

_COLOURS = ("#1a7f4b", "#2f6fb0", "#d98a00", "#8250a8", "#c0362c", "#57606a")
_SAMPLES = 120  # points of a mean curve by hours

Curve = list[tuple[float, float]]


def arena_png(entries: Sequence[Entry], *, by_hours: bool) -> bytes:
    """The picture of an arena, 1600 x 750."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(12.8, 6.0), dpi=125, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    names = [row.researcher for row in tabulate(entries)]
    curves = {
        name: [e.curve(by_hours=by_hours) for e in entries if e.researcher == name and e.closes]
        for name in names
    }
    for name, colour in zip(names, _COLOURS * len(names), strict=False):
        _draw_curves(left, clean(name, 24), curves[name], colour, by_hours=by_hours)
    _draw_fresh(right, entries)
    left.xaxis.set_major_locator(MaxNLocator(integer=not by_hours, nbins=10))
    left.set_xlabel("hours at work" if by_hours else "trial", color=INK)
    left.set_ylabel("gain in val_bpb over the baseline (higher is better)", color=INK)
    left.set_title("judged: the gain at each keep, added up", loc="left", fontsize=11, color=INK)
    if any(curves.values()):
        left.legend(frameon=False, fontsize=9, loc="upper left")
    page = io.BytesIO()
    figure.savefig(page, format="png", metadata={"Software": "autoresearch"})
    return page.getvalue()


def _draw_curves(
    axes: Any, name: str, curves: Sequence[Curve], colour: str, *, by_hours: bool
) -> None:
    """One researcher: its repeats, their mean as far as all of them go, and the band."""
    _dress(axes)
    if not curves:
        return
    for curve in curves:
        axes.step(*zip(*curve, strict=True), where="post", color=colour, linewidth=0.7, alpha=0.25)
    end = min(curve[-1][0] for curve in curves)
    num = _SAMPLES if by_hours else int(end)
    places = [end * i / num for i in range(num + 1)] if num else [0.0]
    means = [estimate([_value_at(curve, x) for curve in curves]) for x in places]
    known = [m for m in means if m is not None]
    places, known = [*places, end + end / 40], [*known, known[-1]]  # shows a step at the end
    label = f"{name} ({len(curves)} repeats)" if len(curves) > 1 else f"{name} (1 repeat)"
    style = {"where": "post", "color": colour, "linewidth": 2.2, "label": label, "zorder": 3}
    axes.step(places, [m.mean for m in known], **style)
    if len(curves) > 1:
        lows, highs = [m.low for m in known], [m.high for m in known]
        axes.fill_between(places, lows, highs, step="post", color=colour, alpha=0.08, linewidth=0)


def _value_at(curve: Curve, x: float) -> float:
    return [gain for place, gain in curve if place <= x + 1e-9][-1]


def _draw_fresh(axes: Any, entries: Sequence[Entry]) -> None:
    """Fresh gains by researcher, in the order of the table."""
    _dress(axes)
    rows = tabulate(entries)
    for place, (row, colour) in enumerate(zip(rows, _COLOURS * len(rows), strict=False)):
        dots = [gain for gain in row.fresh_gains if gain is not None]
        offsets = [
            0.14 * (i - (len(dots) - 1) / 2) / max(1, len(dots) - 1) for i in range(len(dots))
        ]
        xs = [place + 0.18 + offset for offset in offsets]
        axes.scatter(xs, dots, color=colour, s=26, alpha=0.6, linewidths=0)
        mean = row.fresh_gain
        if mean is None:
            continue
        axes.plot([place - 0.22, place + 0.02], [mean.mean] * 2, color=colour, linewidth=2.4)
        if mean.low is not None and mean.high is not None:
            axes.plot([place - 0.1] * 2, [mean.low, mean.high], color=colour, linewidth=1.4)
    axes.axhline(0, color=INK, linewidth=0.8, alpha=0.6)
    axes.set_xticks(range(len(rows)), [clean(row.researcher, 14) for row in rows])
    axes.set_xlim(-0.6, max(len(rows), 1) - 0.3)
    title = "fresh: champions in new pairs of runs, 95 % intervals"
    axes.set_title(title, loc="left", fontsize=11, color=INK)


def _dress(axes: Any) -> None:
    axes.grid(axis="y", color="#eaecef", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
