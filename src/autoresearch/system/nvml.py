"""Memory in use on an NVIDIA card, cheap enough to ask four times a second, and its minor number.

Through the package nvidia-ml-py (extra `gpu`); without it nothing is known and the caller asks
`nvidia-smi` less often.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any


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
