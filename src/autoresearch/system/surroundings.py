"""What goes on around a run: the card's clocks, throttling, others on it, the processor's load.

Sampled about once a second while a candidate trains (some 3 ms of one core, without a card), and
summed up in plain figures. What cannot be read is left out; nothing here fails a run. Load is
counted on the cores that we may use, without our own processes: what a candidate itself burns is
no disturbance, as far as its processes hang together.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from autoresearch.system import hardware, nvml
from autoresearch.system.clock import Clock

EVERY_S = 1.0
_SHORTEST_S = 0.5  # of a span from which a load may be told


class Surroundings:
    """Samples of one run; begins at once."""

    def __init__(self, device: str, clock: Clock) -> None:
        self._device = device
        self._clock = clock
        self._began = self._sampled_at = clock.monotonic()
        self._first = self._last = read_processor()
        self._megahertz: list[float] = []
        self._cards: list[nvml.Card] = []
        self._others: set[int] = set()

    def sample(self) -> None:
        """Look once more, if a second has passed."""
        now = self._clock.monotonic()
        if now - self._sampled_at < EVERY_S:
            return
        self._sampled_at = now
        self._last = read_processor()
        self._megahertz += read_megahertz()
        card = nvml.read_card(self._device) if self._device.startswith("cuda") else None
        if card is not None:
            self._cards.append(card)
            self._others |= find_others(card.pids)

    def summary(self) -> dict[str, Any]:
        """Figures of the whole run, by name."""
        facts = {**self._describe_load(), **describe_cards(self._cards)}
        if self._megahertz:
            facts["cpu_mhz_low"] = round(min(self._megahertz))
        if self._others:
            facts["gpu_other_pids"] = sorted(self._others)
        return facts

    def _describe_load(self) -> dict[str, Any]:
        span_s = self._sampled_at - self._began
        if span_s < _SHORTEST_S:
            return {}
        passed = {name: max(0.0, self._last[name] - self._first[name]) for name in self._last}
        cores_s = span_s * hardware.num_usable_cores()
        others_s = max(0.0, passed["busy"] - passed["own"])
        return {
            "others_load_percent": round(100 * min(1.0, others_s / cores_s), 1),
            "steal_percent": round(100 * min(1.0, passed["steal"] / cores_s), 1),
        }


def read_processor() -> Mapping[str, float]:
    """Seconds so far: busy and stolen on the cores that we may use, and our own."""
    own = busy = steal = 0.0
    with contextlib.suppress(psutil.Error, OSError, RuntimeError):
        usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        for core, times in enumerate(psutil.cpu_times(percpu=True)):
            if usable is None or core in usable:
                stolen = getattr(times, "steal", 0.0)
                steal += stolen
                idle = times.idle + getattr(times, "iowait", 0.0)
                # guests are counted as user time already
                guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
                busy += sum(times) - idle - stolen - guests
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                own += sum(process.cpu_times()[:4])  # with the children that it has buried
    return {"busy": busy, "steal": steal, "own": own}


def read_megahertz() -> list[float]:
    """The processor's clock now, where the machine tells it."""
    with contextlib.suppress(OSError, RuntimeError, AttributeError, NotImplementedError):
        frequency = psutil.cpu_freq()
        if frequency is not None and frequency.current:
            return [frequency.current]
    return []


def find_others(pids: Sequence[int]) -> set[int]:
    """Processes on the card that are not ours; none where the driver's numbers are not ours.

    In a container the driver may count processes otherwise: then none of ours is among them, and
    nothing can be told.
    """
    with contextlib.suppress(psutil.Error):
        me = psutil.Process()
        ours = {me.pid, *(child.pid for child in me.children(recursive=True))}
        return set(pids) - ours if ours & set(pids) else set()
    return set()


def describe_cards(cards: Sequence[nvml.Card]) -> dict[str, Any]:
    """Samples of a card as figures of the run."""
    if not cards:
        return {}
    throttled = [card for card in cards if card.is_throttled]
    facts: dict[str, Any] = {
        "gpu_clock_mhz_mean": round(statistics.fmean(card.clock_mhz for card in cards)),
        "gpu_clock_mhz_low": round(min(card.clock_mhz for card in cards)),
        "gpu_temperature_c_high": max(card.temperature_c for card in cards),
        "gpu_power_w_mean": round(statistics.fmean(card.power_w for card in cards)),
        "gpu_throttled_percent": round(100 * len(throttled) / len(cards), 1),
    }
    reasons = sorted({reason for card in cards for reason in card.throttle_reasons})
    if reasons:
        facts["gpu_limited_by"] = ", ".join(reasons)
    return facts
