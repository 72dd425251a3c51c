"""Clocks and the drift between them."""

from __future__ import annotations

import time

import pytest

from autoresearch.system.clock import Drift, FakeClock, SystemClock


def test_the_system_clock_reads_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three clocks that go forward, and a sleep that is the machine's."""
    clock, slept = SystemClock(), []
    monkeypatch.setattr(time, "sleep", slept.append)
    before = clock.monotonic(), clock.wall(), clock.boot()
    clock.sleep(3.0)
    assert slept == [3.0]
    assert clock.monotonic() >= before[0]
    assert clock.wall() > 1.7e9
    assert clock.boot() >= before[2]


def test_without_a_boot_clock_the_monotonic_one_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    monkeypatch.setattr(time, "monotonic", lambda: 42.0)
    assert SystemClock().boot() == 42.0


def test_a_fake_clock_moves_when_told() -> None:
    """All three move together, sleeping moves them at once."""
    clock = FakeClock(start=10.0)
    drift = Drift(clock)
    wall = clock.wall()
    clock.sleep(100.0)
    assert (clock.monotonic(), clock.boot(), clock.wall() - wall) == (110.0, 110.0, 100.0)
    assert drift.seconds() == 0.0


@pytest.mark.parametrize("jump_s", [2.0, -2.0])
@pytest.mark.parametrize("which", ["wall_jump_s", "boot_jump_s"])
def test_drift_is_seen_in_either_clock_and_direction(which: str, jump_s: float) -> None:
    """Sleep moves boot and wall clock forward, a reset moves the wall clock anywhere."""
    clock = FakeClock()
    drift = Drift(clock)
    clock.now += 7.0
    setattr(clock, which, jump_s)
    assert drift.seconds() == pytest.approx(2.0)
