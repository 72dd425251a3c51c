"""What is seen around a run: on this machine, and on cards that are made up."""

from __future__ import annotations

import os
from typing import Any

import pytest

from autoresearch.system import nvml, surroundings
from autoresearch.system.clock import FakeClock
from autoresearch.system.surroundings import (
    Surroundings,
    describe_cards,
    find_others,
    read_processor,
)


def card(**changes: Any) -> nvml.Card:
    """One look at a card that works as it should."""
    values: dict[str, Any] = {
        "clock_mhz": 1900.0,
        "temperature_c": 60.0,
        "power_w": 650.0,
        "throttle_reasons": ("power cap",),
        "pids": (),
    }
    return nvml.Card(**{**values, **changes})


def test_the_processor_is_read_here() -> None:
    """Seconds that only grow, and some of them ours."""
    first, last = read_processor(), read_processor()
    assert set(first) == {"busy", "steal", "own"}
    assert first["own"] > 0
    assert last["busy"] >= first["busy"]


def test_our_own_work_is_not_the_load_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Busy less own, as a share of the cores that we may use; samples a second apart at least."""
    looks = [
        {"busy": 100.0, "own": 50.0, "steal": 1.0},
        {"busy": 112.0, "own": 57.0, "steal": 3.0},
        {"busy": 120.0, "own": 60.0, "steal": 3.0},
    ]
    monkeypatch.setattr(surroundings, "read_processor", lambda: looks.pop(0))
    monkeypatch.setattr("autoresearch.system.hardware.num_usable_cores", lambda: 2)
    clock = FakeClock()
    around = Surroundings("cpu", clock)
    assert "others_load_percent" not in around.summary()
    for seconds in (5.0, 0.5, 4.5):
        clock.sleep(seconds)
        around.sample()
    facts = around.summary()
    assert facts["others_load_percent"] == 50.0
    assert facts["steal_percent"] == 10.0


def test_a_card_in_figures() -> None:
    """Clocks, heat, power; its own power cap is no throttling, heat is."""
    facts = describe_cards([card(), card(clock_mhz=1200.0, throttle_reasons=("heat", "power cap"))])
    assert facts == {
        "gpu_clock_mhz_mean": 1550,
        "gpu_clock_mhz_low": 1200,
        "gpu_temperature_c_high": 60.0,
        "gpu_power_w_mean": 650,
        "gpu_throttled_percent": 50.0,
        "gpu_limited_by": "heat, power cap",
    }
    assert describe_cards([]) == {}


def test_others_on_the_card() -> None:
    """Told only where the driver's process numbers are ours too."""
    assert find_others([os.getpid(), 1]) == {1}
    assert find_others([os.getpid()]) == set()
    assert find_others([1, 2]) == set()


def test_a_card_is_looked_at_while_a_run_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers on it are named."""
    monkeypatch.setattr(nvml, "read_card", lambda device: card(pids=(os.getpid(), 1)))
    clock = FakeClock()
    around = Surroundings("cuda:0", clock)
    clock.sleep(1.5)
    around.sample()
    facts = around.summary()
    assert facts["gpu_other_pids"] == [1]
    assert facts["gpu_throttled_percent"] == 0.0
