"""The presenter's view of the scorer's two buffers, on the host or on a CUDA device."""

from __future__ import annotations

import math
import mmap
import os
import warnings

import torch
from torch import Tensor

from autoresearch.wire import device_memory


def map_tokens(fd: int, shape: tuple[int, int]) -> Tensor:
    """The token buffer, (rows, context) int32, read-only."""
    view = mmap.mmap(fd, os.fstat(fd).st_size, prot=mmap.PROT_READ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch has no read-only tensors and says so
        return torch.frombuffer(view, dtype=torch.int32).view(shape)


def map_logits(fd: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """The logits buffer, (rows, context, vocab) float32, writable: device memory on CUDA, else host
    memory.
    """
    if device.type == "cuda":
        memory = device_memory.import_fd(fd, 4 * math.prod(shape), device.index or 0)
        return device_memory.as_tensor(memory, shape)
    view = mmap.mmap(fd, os.fstat(fd).st_size)
    return torch.frombuffer(view, dtype=torch.float32, count=math.prod(shape)).view(shape)
