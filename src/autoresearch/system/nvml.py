"""Memory in use on an NVIDIA card and the state it is in, cheap enough to ask while a run trains.

Through the package nvidia-ml-py (extra `gpu`); without it nothing is known and the caller asks
`nvidia-smi` less often.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from autoresearch.system import hardware

Answer = TypeVar("Answer")

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
    """MiB in use on "cuda:N" by everybody; None where nobody can tell."""

    def ask(nvml: Any, card: Any) -> float:
        return float(nvml.nvmlDeviceGetMemoryInfo(card).used) / 2**20

    return _ask(_index_of(device), ask)


def minor_number(index: int) -> int | None:
    """The N of /dev/nvidiaN for nvidia-smi's card `index`; None where nobody can tell."""

    def ask(nvml: Any, card: Any) -> int:
        return int(nvml.nvmlDeviceGetMinorNumber(card))

    return _ask(index, ask)


def read_card(device: str) -> Card | None:
    """The state of "cuda:N" now; None where nobody can tell."""

    def ask(nvml: Any, card: Any) -> Card:
        bits = int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(card))
        return Card(
            clock_mhz=float(nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM)),
            temperature_c=float(nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU)),
            power_w=nvml.nvmlDeviceGetPowerUsage(card) / 1000,
            throttle_reasons=tuple(name for bit, name in _REASONS.items() if bits & bit),
            pids=tuple(p.pid for p in nvml.nvmlDeviceGetComputeRunningProcesses(card)),
        )

    return _ask(_index_of(device), ask)


def _ask(index: int | None, question: Callable[[Any, Any], Answer]) -> Answer | None:
    """What NVML says about its card `index`; None where it, its package or the card is missing."""
    found = _handle(index) if index is not None else None
    if found is None:
        return None
    nvml, card = found
    try:
        return question(nvml, card)
    except nvml.NVMLError:
        return None


@lru_cache(maxsize=16)
def _index_of(device: str) -> int | None:
    """NVML counts as nvidia-smi does: all cards, whatever CUDA_VISIBLE_DEVICES shows of them."""
    gpu = hardware.gpu_of(device)
    return None if gpu is None else gpu.index


@lru_cache(maxsize=16)
def _handle(index: int) -> tuple[Any, Any] | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError:
        return None
