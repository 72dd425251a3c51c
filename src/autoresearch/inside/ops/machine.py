"""What a launch wants to know about the device."""

from __future__ import annotations

from functools import cache

import torch


@cache
def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors; a few where Triton's interpreter stands in for a device."""
    if device.type != "cuda":
        return 4
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
