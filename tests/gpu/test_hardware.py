"""What hardware.py says of a real card."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoresearch.system import hardware

pytestmark = pytest.mark.gpu


def test_the_card_is_described() -> None:
    """Name, memory, driver and device node of the first card are there, and so is its state."""
    gpu = hardware.gpu_of("cuda:0")
    assert gpu is not None
    assert gpu.memory_mb > 1000
    assert gpu.capability >= 5
    assert Path(f"/dev/nvidia{gpu.minor}").exists()
    state = hardware.read_state("cuda:0")
    assert state["gpu_clock_mhz"] > 0
    assert 0 < state["gpu_temperature_c"] < 120
    assert state["gpu_memory_used_mb"] <= gpu.memory_mb


def test_memory_of_an_unknown_process_makes_a_card_busy() -> None:
    """Two GiB held by this process are seen, and are no reason when they are ours."""
    import os

    import torch

    held = torch.empty(2 << 30, dtype=torch.uint8, device="cuda:0")
    assert hardware.is_busy("cuda:0")
    torch.cuda.synchronize()
    seen = hardware.read_state("cuda:0")["gpu_pids"]
    if seen == [os.getpid()]:
        assert hardware.is_busy("cuda:0", own_pids=seen) == ""
    del held
