"""When a run is made again because of the machine, and when it is not."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoresearch.search.disturbance import find_disturbance, set_aside
from autoresearch.values.config import DisturbedSettings
from autoresearch.values.records import Measurement, Outcome, Purpose

SETTINGS = DisturbedSettings()
QUIET = {"others_load_percent": 5.0, "steal_percent": 0.0, "step_jitter": 0.1}


def run(run_id: int, outcome: Outcome = Outcome.SCORED, **facts: Any) -> Measurement:
    """A run with these figures of the machine, else quiet ones."""
    return Measurement(
        run_id=run_id,
        commit="c",
        purpose=Purpose.SCREEN,
        seed=1,
        outcome=outcome,
        val_bpb=2.0 if outcome is Outcome.SCORED else None,
        hardware={**QUIET, **facts},
    )


BEFORE = [run(i) for i in range(6)]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"gpu_other_pids": [7, 8]}, "another process used the card: 7, 8"),
        (
            {"gpu_throttled_percent": 40.0, "gpu_limited_by": "heat"},
            r"slowed down \(heat\) 40 % of the time, 0 % before",
        ),
        ({"others_load_percent": 80.0}, "others used 80 % of the processor, 5 % before"),
        ({"steal_percent": 20.0}, "20 % of the processor was taken by other machines"),
        ({"step_jitter": 0.5, "others_load_percent": 40.0}, "5.0 times as uneven"),
    ],
)
def test_what_was_not_so_before_is_said(facts: dict[str, Any], words: str) -> None:
    """Each cause sets a run aside, without a score, with what was seen."""
    aside = set_aside(SETTINGS, run(9, **facts), BEFORE)
    assert aside.outcome is Outcome.DISTURBED
    assert aside.val_bpb is None
    assert re.search(words, aside.reason), aside.reason
    off = DisturbedSettings(rerun="off")
    assert set_aside(off, run(9, **facts), BEFORE).outcome is Outcome.SCORED


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"others_load_percent": 50.0},
        {"step_jitter": 9.0},
        {"gpu_throttled_percent": 5.0},
        {"others_load_percent": 0.0, "step_jitter": 0.0},
    ],
)
def test_a_candidate_alone_is_no_disturbance(facts: dict[str, Any]) -> None:
    """A little more load, and steps as uneven as they like while the machine is quiet."""
    assert find_disturbance(SETTINGS, run(9, **facts), BEFORE) == ""


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 100), st.floats(0, 100), st.lists(st.booleans(), min_size=1, max_size=12))
def test_what_stays_becomes_usual(quiet: float, busy: float, is_gpu: list[bool]) -> None:
    """Whatever a machine begins to do for good, at most four runs are set aside for it."""
    before = [run(i, others_load_percent=quiet) for i in range(6)]
    facts: dict[str, Any] = {"others_load_percent": busy, "steal_percent": busy, "step_jitter": 9.0}
    if is_gpu[0]:
        facts |= {"gpu_other_pids": [7], "gpu_throttled_percent": busy}
    num_aside = 0
    for i in range(12):
        aside = set_aside(SETTINGS, run(10 + i, **facts), before)
        num_aside += aside.outcome is Outcome.DISTURBED
        before.append(aside)
    assert num_aside <= 4


def test_the_first_runs_have_nothing_to_be_compared_with() -> None:
    """Load and steal wait for four runs; a stranger on the card does not."""
    assert find_disturbance(SETTINGS, run(9, others_load_percent=99.0), BEFORE[:3]) == ""
    assert find_disturbance(SETTINGS, run(9, gpu_other_pids=[7]), []) != ""


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.SCORED])
def test_only_what_may_be_the_machines_doing_is_set_aside(outcome: Outcome) -> None:
    """A timeout or an early stop on a busy machine; never a crash or a cheat."""
    aside = set_aside(SETTINGS, run(9, outcome, others_load_percent=99.0), BEFORE)
    is_aside = outcome in (Outcome.TIMEOUT, Outcome.STOPPED, Outcome.DISTURBED)
    assert aside.outcome is (Outcome.DISTURBED if is_aside else outcome)
