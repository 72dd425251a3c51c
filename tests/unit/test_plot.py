"""progress.png: it draws every kind of history, and labels never hide anything."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.search.history import History
from autoresearch.search.noise import Noise
from autoresearch.values.records import Decision, Trial, Verdict
from autoresearch.views import plot
from autoresearch.views.labels import label_kept
from autoresearch.views.placing import Placer, Spot, cross, crosses_box
from autoresearch.views.plot import progress_png

FRAME = (0.0, 0.0, 1000.0, 600.0)


def _many(history: History, count: int, seed: int = 0) -> History:
    """`history` with `count` trials, a kept one now and then, some far off."""
    draw = random.Random(seed)
    level, trials = 2.3, []
    for number in range(1, count + 1):
        verdict, score = Verdict.DISCARD, level + abs(draw.gauss(0, 0.1))
        if draw.random() < 0.2:
            verdict, score = Verdict.KEEP, level - abs(draw.gauss(0, 0.02))
            level = score
        if draw.random() < 0.05:
            verdict, score = Verdict.DISCARD, 9.0
        decision = Decision(verdict=verdict, reason="", val_bpb=score, gain_bpb=draw.random())
        trials.append(
            dataclasses.replace(
                history.trials[1],
                trial_id=number,
                description=f"change number {number} of some length",
                runs=(),
                decision=decision,
            )
        )
    return dataclasses.replace(history, trials=tuple(trials))


@pytest.mark.parametrize("count", [1, 90])
def test_draws_histories_of_all_sizes(history: History, noise: Noise, count: int) -> None:
    """A PNG of the promised size, whatever the number of trials."""
    page = progress_png(_many(history, count), noise)
    assert page.startswith(b"\x89PNG")
    assert struct.unpack(">II", page[16:24]) == (1600, 900)


def test_draws_all_verdicts_and_odd_text(history: History, noise: Noise) -> None:
    """Formulas, characters without a glyph and control characters in a description draw; equal
    histories give equal bytes.
    """
    first = dataclasses.replace(history.trials[0], description="$\\frac{x$ \u4e00 \x1b[31m & <b>")
    odd = dataclasses.replace(history, trials=(first, *history.trials[1:]))
    page = progress_png(odd, noise)
    assert page.startswith(b"\x89PNG")
    assert page == progress_png(odd, noise)


def test_draws_an_empty_ledger() -> None:
    """No baseline, no trials: an empty picture, no error."""
    page = progress_png(History(), Noise(sigma_bpb=0.0, degrees_of_freedom=0))
    assert page.startswith(b"\x89PNG")


def test_the_line_is_at_the_score_that_the_title_names(
    history: History, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The champion's mean over fresh runs, not the run that it was kept for."""
    lines = []
    lucky = Decision(verdict=Verdict.KEEP, reason="", val_bpb=2.05, gain_bpb=0.25)
    kept = dataclasses.replace(history.trials[0], decision=lucky)
    history = dataclasses.replace(history, trials=(kept, *history.trials[1:]))
    monkeypatch.setattr(plot, "label_kept", lambda axes, *_: lines.append(axes.lines[-1]))
    progress_png(history, noise)
    assert lines[0].get_label() == "champion"
    assert list(lines[0].get_ydata()) == pytest.approx([2.30, 2.30, 2.12, 2.12])


def _labels(history: History, trials: list[Trial]) -> list[str]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6))
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlim(0, len(trials) + 1)
    axes.set_ylim(1, 3)
    canvas.draw()
    label_kept(axes, history, trials, [], canvas.get_renderer())
    return [text.get_text() for text in axes.texts]


def test_labels_name_the_kept_trials(history: History) -> None:
    """The number and the description, for kept trials only."""
    assert _labels(history, list(history.trials)) == ["#1 head_lr 0.002 -> 0.004"]


def test_labels_words_for_the_biggest_gains_only(history: History) -> None:
    """With many keeps, the small ones have numbers or nothing."""
    kept = [
        dataclasses.replace(
            history.trials[0],
            trial_id=number,
            decision=Decision(verdict=Verdict.KEEP, reason="", gain_bpb=number / 100),
        )
        for number in range(1, 51)
    ]
    worded = [int(text[1:].split()[0]) for text in _labels(history, kept) if " " in text]
    assert worded
    assert all(number > 34 for number in worded)


points = st.lists(
    st.tuples(st.floats(0, 1000), st.floats(0, 600)), min_size=1, max_size=12, unique=True
)


@given(points, st.booleans())
def test_labels_never_overlap(anchors: list[tuple[float, float]], is_stair: bool) -> None:
    """Placed labels stay in the frame, apart from each other, from points and from leaders."""
    placer = Placer(frame=FRAME, points=anchors, line=[])
    spots = [placer.place(anchor, (120.0, 12.0), is_stair=is_stair) for anchor in anchors]
    boxes = [_box(spot) for spot in spots if spot]
    for box in boxes:
        assert 0 <= box[0] <= box[2] <= 1000
        assert 0 <= box[1] <= box[3] <= 600
        assert not any(box[0] < x < box[2] and box[1] < y < box[3] for x, y in anchors)
    for a, b in itertools.combinations(boxes, 2):
        assert not (a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])
    leaders = [spot.leader for spot in spots if spot and spot.leader]
    for one, other in itertools.combinations(leaders, 2):
        assert not cross(*one, *other)


def _box(spot: Spot) -> tuple[float, float, float, float]:
    return spot.x, spot.y, spot.x + 120.0, spot.y + 12.0


def test_labels_keep_off_the_line() -> None:
    """No label is written over the champion's line, none where there is no room."""
    line = [(0.0, 300.0), (500.0, 300.0), (500.0, 100.0), (1000.0, 100.0)]
    placer = Placer(frame=FRAME, points=[(500.0, 100.0)], line=line)
    spot = placer.place((500.0, 100.0), (120.0, 12.0))
    assert spot is not None
    assert not any(crosses_box(a, b, _box(spot)) for a, b in itertools.pairwise(line))
    assert Placer(frame=FRAME, points=[], line=[]).place((500.0, 100.0), (2000.0, 12.0)) is None


def test_odd_scores_are_drawn_as_none(history: History, noise: Noise) -> None:
    """No baseline, NaN in a decision: neither the scale nor the labels break."""
    decision = Decision(verdict=Verdict.DISCARD, reason="", val_bpb=math.nan, gain_bpb=math.nan)
    odd = dataclasses.replace(history.trials[1], decision=decision, runs=())
    changed = dataclasses.replace(history, trials=(odd, *history.trials), runs=())
    assert progress_png(changed, noise).startswith(b"\x89PNG")
