"""Memory in use on an NVIDIA card and the state it is in, cheap enough to ask while a run trains.

Through the package nvidia-ml-py (extra `gpu`); without it nothing is known and the caller asks
`nvidia-smi` less often.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_REASONS = {  # bits of what NVML gives; idling and clocks set by hand are left out
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "heat",
    0x40: "heat (hardware)",
    0x80: "power brake",
}
_DISTURBING = frozenset({"hardware slowdown", "heat", "heat (hardware)", "power brake"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One look at a card; `pids` are processes that compute on it, numbered as the driver does."""

    clock_mhz: float
    temperature_c: float
    power_w: float
    throttle_reasons: tuple[str, ...]
    pids: tuple[int, ...]

    @property
    def is_throttled(self) -> bool:
        """Slower for a reason from outside; a card at its own power cap works as it always does."""
        return not _DISTURBING.isdisjoint(self.throttle_reasons)


def used_memory_mb(device: str) -> float | None:
    """MiB in use on "cuda:N" by everybody; None where NVML or its package is not there."""
    handle = _handle(int(device.partition(":")[2] or 0))
    if handle is None:
        return None
    nvml, card = handle
    try:
        return float(nvml.nvmlDeviceGetMemoryInfo(card).used) / 2**20
    except nvml.NVMLError:
        return None


def minor_number(index: int) -> int | None:
    """The N of /dev/nvidiaN for nvidia-smi's card `index`; None where nobody can tell."""
    handle = _handle(index)
    if handle is None:
        return None
    nvml, card = handle
    try:
        return int(nvml.nvmlDeviceGetMinorNumber(card))
    except nvml.NVMLError:
        return None


def read_card(device: str) -> Card | None:
    """The state of "cuda:N" now; None where NVML or its package is not there, or does not tell."""
    handle = _handle(int(device.partition(":")[2] or 0))
    if handle is None:
        return None
    nvml, card = handle
    try:
        bits = int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(card))
        return Card(
            clock_mhz=float(nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM)),
            temperature_c=float(nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU)),
            power_w=nvml.nvmlDeviceGetPowerUsage(card) / 1000,
            throttle_reasons=tuple(name for bit, name in _REASONS.items() if bits & bit),
            pids=tuple(p.pid for p in nvml.nvmlDeviceGetComputeRunningProcesses(card)),
        )
    except nvml.NVMLError:
        return None


@lru_cache(maxsize=16)
def _handle(ordinal: int) -> tuple[Any, Any] | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByIndex(ordinal)
    except pynvml.NVMLError:
        return None
