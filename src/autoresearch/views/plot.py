"""progress.png: every trial a mark, the champion a falling line, the baseline's noise a band.

Marks: grey dot discarded, amber ring near miss, green dot kept, red cross on the lower edge without
a score (crash, timeout, cheat, interrupted), grey triangle on the upper edge worse than the picture
shows. Labels go where they hide nothing; a kept trial whose label finds no place keeps its number
only, and summary.md has them all.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

from autoresearch.search.history import History
from autoresearch.search.noise import Noise
from autoresearch.values.records import Trial, Verdict
from autoresearch.views.digest import (
    FAILED,
    closed_trials,
    find_champion,
    kept_trials,
    measure,
    score_commit,
    score_trial,
    verdict_of,
)
from autoresearch.views.labels import INK, MAX_WORDED, label_kept
from autoresearch.views.text import bpb, count_verdicts, percent, plural

GREY, GREEN, AMBER = "#b4bac2", "#1a7f4b", "#d98a00"
RED, BAND = "#c0362c", "#7f8fa6"


def progress_png(history: History, noise: Noise) -> bytes:
    """The picture of a session, 1600 x 900."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.8, 7.2), dpi=125, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    trials = closed_trials(history)
    low, high = _limits(history, trials)
    axes.set_ylim(low, high)
    width = max(len(trials), 4)
    axes.set_xlim(-0.02 * width - 0.4, 1.01 * width + 0.4)
    _draw_baseline(axes, history, noise)
    _draw_trials(axes, history, trials, high)
    steps = _draw_champion(axes, history, trials)
    _dress(axes, history, noise, trials)
    with (
        warnings.catch_warnings()
    ):  # a description may hold a character that the font lacks; it shows as a box
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        canvas.draw()  # fixes the layout, so that labels can be placed in pixels
        label_kept(axes, history, trials, steps, canvas.get_renderer())
        page = io.BytesIO()
        figure.savefig(page, format="png", metadata={"Software": "autoresearch"})
    return page.getvalue()


def _limits(history: History, trials: Sequence[Trial]) -> tuple[float, float]:
    """A range that shows what matters: outliers at the edge, room for labels under the line."""
    scores = sorted(score.mean_bpb for trial in trials if (score := score_trial(trial, history)))
    ends = (score_commit(history, history.baseline), find_champion(history))
    anchors = [bound for s in ends if s for bound in (s.low_bpb, s.high_bpb)]
    if not scores and not anchors:
        return 0.0, 1.0
    low = min(scores[:1] + anchors)
    top = max(anchors) if anchors else scores[len(scores) // 2]
    if scores:
        usual = min(
            max(scores[3 * len(scores) // 4], top + 0.6 * (top - low)), top + 3 * (top - low)
        )
        high = max(top, min(scores[-1], usual))
    else:
        high = top
    span = max(high - low, 0.002 * abs(high), 1e-6)
    room = 0.2 + 0.04 * min(len(kept_trials(history)), MAX_WORDED)  # a line for each label
    return low - room * span, high + 0.08 * span


def _draw_baseline(axes: Any, history: History, noise: Noise) -> None:
    digest = measure(history, noise)
    if digest.baseline is None:
        return
    mean, sigma = digest.baseline.mean_bpb, digest.sigma_bpb
    low, high = (
        (mean - sigma, mean + sigma)
        if sigma is not None
        else (digest.baseline.low_bpb, digest.baseline.high_bpb)
    )
    runs = plural(digest.baseline.num_runs, "run")
    label = (
        f"baseline, {runs}; band 1 sigma" if sigma is not None else f"baseline; band: its {runs}"
    )
    axes.axhspan(low, high, color=BAND, alpha=0.16, linewidth=0, zorder=0)
    axes.axhline(mean, color=BAND, linewidth=1.2, linestyle=(0, (5, 3)), label=label, zorder=1)


def _draw_trials(axes: Any, history: History, trials: Sequence[Trial], high: float) -> None:
    """All marks but the kept ones."""
    size = 34 if len(trials) <= 80 else 16
    edge = axes.get_xaxis_transform()
    marks: dict[str, list[tuple[int, float]]] = {
        "discarded": [],
        "near miss": [],
        "off the scale": [],
        "no score": [],
    }
    for number, trial in enumerate(trials, 1):
        score, verdict = score_trial(trial, history), verdict_of(trial)
        if verdict in FAILED or score is None:
            marks["no score"].append((number, 0.018))
        elif verdict is not Verdict.KEEP and score.mean_bpb > high:
            marks["off the scale"].append((number, 0.985))
        elif verdict is Verdict.NEAR_MISS:
            marks["near miss"].append((number, score.mean_bpb))
        elif verdict is not Verdict.KEEP:
            marks["discarded"].append((number, score.mean_bpb))
    styles: dict[str, dict[str, Any]] = {
        "discarded": {"color": GREY, "s": size, "linewidths": 0},
        "near miss": {"facecolors": "white", "edgecolors": AMBER, "s": size, "linewidths": 1.6},
        "off the scale": {
            "color": GREY,
            "s": size,
            "marker": "^",
            "linewidths": 0,
            "transform": edge,
        },
        "no score": {"color": RED, "s": size, "marker": "x", "linewidths": 1.3, "transform": edge},
    }
    for kind, points in marks.items():
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, label=f"{kind} ({len(points)})", zorder=2, **styles[kind])


def _draw_champion(
    axes: Any, history: History, trials: Sequence[Trial]
) -> list[tuple[float, float]]:
    """The champion's score as a step line with its kept trials; gives the corners of the line."""
    baseline = score_commit(history, history.baseline)
    kept = [
        (number, score.mean_bpb)
        for number, trial in enumerate(trials, 1)
        if verdict_of(trial) is Verdict.KEEP and (score := score_trial(trial, history))
    ]
    corners: list[tuple[float, float]] = [(0.0, baseline.mean_bpb)] if baseline else []
    for number, value in kept:
        if corners:
            corners.append((number, corners[-1][1]))
        corners.append((number, value))
    if kept:
        corners.append((float(max(len(trials), 1)), corners[-1][1]))
        axes.plot(
            *zip(*corners, strict=True), color=GREEN, linewidth=1.8, label="champion", zorder=3
        )
    if baseline:
        axes.scatter([0], [baseline.mean_bpb], color=INK, s=46, zorder=4)
    if kept:
        x, y = zip(*kept, strict=True)
        label = f"kept ({len(kept)})"
        axes.scatter(
            x, y, color=GREEN, edgecolors="white", linewidths=0.9, s=62, label=label, zorder=5
        )
    return corners


def _dress(axes: Any, history: History, noise: Noise, trials: Sequence[Trial]) -> None:
    """Title, axes, legend."""
    from matplotlib.ticker import MaxNLocator

    digest = measure(history, noise)
    title = (
        f"{plural(digest.num_closed, 'trial')}: {count_verdicts(digest.counts)}"
        if trials
        else "no trials yet"
    )
    axes.set_title(title, loc="left", fontsize=13, color=INK, pad=24, fontweight="bold")
    if digest.baseline:
        story = f"baseline val_bpb {bpb(digest.baseline.mean_bpb)}"
        if digest.champion and digest.gain_bpb is not None:
            lower = "lower" if digest.gain_bpb >= 0 else "higher"
            change = percent(abs(digest.gain_bpb), digest.baseline.mean_bpb)
            scores = f"{bpb(digest.baseline.mean_bpb)} to {bpb(digest.champion.mean_bpb)}"
            story = f"val_bpb {scores}, {change} {lower}"
        axes.annotate(
            story,
            (0, 1),
            (0, 8),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=11,
            color="#57606a",
        )
    axes.set_xlabel("trial", color=INK)
    axes.set_ylabel("val_bpb (lower is better)", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(axis="y", color="#eaecef", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if handles:  # below the picture, where it hides nothing; what matters first
        style: dict[str, Any] = {
            "fontsize": 9,
            "frameon": False,
            "handletextpad": 0.5,
            "columnspacing": 1.6,
        }
        axes.figure.legend(
            handles[::-1], labels[::-1], loc="outside lower center", ncols=len(handles), **style
        )
