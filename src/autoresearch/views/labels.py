"""Labels of kept trials in progress.png: descriptions where there is room, else numbers.

Two ways are tried, labels beside their points and a stair of labels below them, and the one that
shows more words is drawn. A trial with no room at all goes without; summary.md has them all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from autoresearch.search.history import History
from autoresearch.values.records import Trial, Verdict
from autoresearch.views.digest import score_trial, verdict_of
from autoresearch.views.placing import Placer, Spot
from autoresearch.views.text import clean

INK = "#22272e"
_STYLE = {"fontsize": 8.5, "color": INK, "parse_math": False, "zorder": 6, "transform": None}
_PAPER = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.5}
_MAX_CHARS = 38
MAX_WORDED = 16  # more words than that are no picture

Point = tuple[float, float]
Label = tuple[str, Spot]


def label_kept(
    axes: Any, history: History, trials: Sequence[Trial], steps: Sequence[Point], renderer: Any
) -> None:
    """Label the kept trials; `steps` is the champion's line, which no label may cover."""
    to_pixels = axes.transData.transform
    places = {
        trial.trial_id: tuple(to_pixels((number, score.mean_bpb)))
        for number, trial in enumerate(trials, 1)
        if (score := score_trial(trial, history))
    }
    kept = [t for t in trials if verdict_of(t) is Verdict.KEEP and t.trial_id in places]
    texts = _texts(kept)
    sizes = {text: _size(axes, renderer, text) for pair in texts.values() for text in pair}
    plans = []
    for is_stair in (False, True):
        placer = Placer(
            frame=axes.get_window_extent(renderer).extents,
            points=list(places.values()),
            line=[tuple(to_pixels(corner)) for corner in steps],
        )
        plans.append(_plan(placer, texts, places, sizes, is_stair))
    for text, spot in max(plans, key=_worth):
        axes.text(spot.x, spot.y, text, va="bottom", bbox=_PAPER, **_STYLE)
        if spot.leader:
            style = {"color": INK, "linewidth": 0.5, "alpha": 0.5, "zorder": 2}
            line = axes.plot(*zip(*spot.leader, strict=True), **style)[0]
            line.set_transform(None)


def _texts(kept: Sequence[Trial]) -> dict[int, list[str]]:
    """What may stand at each kept trial, the better first; the biggest gains get words."""
    worded = sorted(kept, key=_gain, reverse=True)[:MAX_WORDED]
    texts = {trial.trial_id: [f"#{trial.trial_id}"] for trial in kept}
    for trial in worded:
        words = f"#{trial.trial_id} {clean(trial.description, _MAX_CHARS)}"
        texts[trial.trial_id].insert(0, words)
    return texts


def _gain(trial: Trial) -> float:
    gain = trial.decision.gain_bpb if trial.decision else None
    return gain if gain is not None and math.isfinite(gain) else 0.0


def _plan(
    placer: Placer,
    texts: dict[int, list[str]],
    places: dict[int, Point],
    sizes: dict[str, tuple[float, float]],
    is_stair: bool,
) -> list[Label]:
    """Words first, from right to left: then no leader has to cross a label. Numbers after."""
    labels: dict[int, Label] = {}
    for is_word in (True, False):
        manner: dict[str, Any] = {"is_stair": is_stair} if is_word else {"reach": 40.0}
        for trial_id in reversed(texts):
            text = texts[trial_id][0 if is_word else -1]
            if trial_id in labels or (" " in text) is not is_word:
                continue
            spot = placer.place(places[trial_id], sizes[text], **manner)
            if spot is not None:
                labels[trial_id] = (text, spot)
    return list(labels.values())


def _worth(labels: Sequence[Label]) -> int:
    return sum(10 if " " in text else 1 for text, _ in labels)


def _size(axes: Any, renderer: Any, text: str) -> tuple[float, float]:
    """Width and height in pixels."""
    label = axes.text(0, 0, text, **_STYLE)
    box = label.get_window_extent(renderer)
    label.remove()
    return box.width, box.height
