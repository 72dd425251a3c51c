"""What the referee makes of a candidate's reports."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoresearch.referee.telemetry import CURVE_POINTS, MOST_REPORTED, Telemetry, to_number

few = settings(max_examples=60, deadline=None)


@few
@given(
    st.lists(st.tuples(st.floats(0, 0.3), st.floats(-10, 10)), max_size=400), st.floats(1.0, 10.0)
)
def test_a_curve_is_short_and_in_order(reports: list[tuple[float, float]], budget_s: float) -> None:
    """However many reports, some forty points, rising seconds, the last report among them."""
    telemetry, now = Telemetry(budget_s), 0.0
    for pause, loss in reports:
        now += pause
        if now <= budget_s:
            telemetry.note(now, {"step": 1, "loss": loss})
            assert telemetry.curve[-1] == (round(now, 3), round(loss, 5))
    curve = telemetry.curve
    assert len(curve) <= CURVE_POINTS + 2
    assert [second for second, _ in curve] == sorted(second for second, _ in curve)


@few
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=8,
    )
)
def test_any_report_is_survived(claimed: Any) -> None:
    """Whatever JSON a candidate sends as values, loss and step."""
    telemetry = Telemetry(10.0)
    for second, body in enumerate((claimed, {"loss": claimed, "step": claimed})):
        telemetry.note(float(second), body)
    assert all(math.isfinite(loss) for _, loss in telemetry.curve)


@pytest.mark.parametrize("value", [None, "x", True, 10**400, [1], math.nan])
def test_what_is_no_number(value: object) -> None:
    """NaN stands for all of it."""
    assert math.isnan(to_number(value))


def test_room_for_names_is_limited() -> None:
    """Sixty-four names of a run are kept, then only their values change."""
    telemetry = Telemetry(10.0)
    for i in range(10):
        telemetry.keep({f"{i}-{j}": j for j in range(20)})
    telemetry.keep({"0-0": 99})
    assert len(telemetry.reported) == MOST_REPORTED
    assert telemetry.reported["0-0"] == 99


@pytest.mark.parametrize("bad", ["nan", "inf", 12.5])
def test_divergence_is_seen_at_the_second_report(bad: object) -> None:
    """Not a number, or far above what it was; one bad report alone is forgiven."""
    telemetry = Telemetry(10.0)
    for second, loss in enumerate([4.0, 3.9, 3.8, bad, 3.7, bad]):
        telemetry.note(float(second), {"loss": loss})
    assert telemetry.divergence == ""
    telemetry.note(9.0, {"loss": bad})
    assert "diverged: train.py reports a loss of" in telemetry.divergence
    assert "it was 3.7" in telemetry.divergence


def test_the_first_steps_may_go_astray() -> None:
    """Within a tenth of the budget a loss may rise and come back."""
    telemetry = Telemetry(10.0)
    for second, loss in ((0.1, 7.0), (0.3, 20.0), (0.6, 15.0), (2.0, 6.0), (3.0, 5.0)):
        telemetry.note(second, {"loss": loss})
    assert telemetry.divergence == ""


def test_jitter_is_the_spread_of_step_times() -> None:
    """None at even steps, large where some take three times as long; nothing from few reports."""
    even, uneven = Telemetry(100.0), Telemetry(100.0)
    now = 0.0
    for i in range(30):
        even.note(float(i), {"step": 10 * i})
        now += 3.0 if i % 3 == 0 else 1.0
        uneven.note(now, {"step": 10 * i})
    assert even.step_jitter == pytest.approx(0.0)
    assert uneven.step_jitter == pytest.approx(2.0)
    assert Telemetry(1.0).step_jitter is None
