"""Weights on their way from the candidate to the presenter: a safetensors file in shared memory.

The format is safetensors' own (8 bytes of length, a JSON header, the tensors), so that a kept file
opens with the library. Written and read here without it: the library makes three copies of
everything, and the last seconds of the budget and the first of the scoring pay for them. Here a
tensor goes from the device to its place, once. The place is made ready, and the way to it timed,
before the clock starts.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_COMPILED = "_orig_mod."  # torch.compile's prefix on parameter names
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


class Parcel:
    """The file behind `fd` and a mapping of it that holds a model of the size last written."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._view: mmap.mmap | None = None

    def make_room(self, model: nn.Module) -> Callable[[], None]:
        """A call that touches every page that the weights will need; it may run in a thread.

        It leaves the device alone, which may be capturing a graph meanwhile.
        """
        tensors, header = _describe(model)
        view = self._room(_places(tensors, len(header))[1])
        pages = torch.frombuffer(view, dtype=torch.uint8)[:: mmap.PAGESIZE]

        def touch() -> None:
            pages.zero_()

        return touch

    def rehearse(self, model: nn.Module) -> float:
        """Write the weights as they are; seconds."""
        began = time.perf_counter()
        self.write(model)
        return time.perf_counter() - began

    def write(self, model: nn.Module) -> int:
        """The number of bytes written.

        Raises:
            ValueError: a tensor's type has no name in the format.
        """
        tensors, header = _describe(model)
        starts, size_bytes = _places(tensors, len(header))
        view = self._room(size_bytes)
        view[: len(header)] = header
        for tensor, start in zip(tensors.values(), starts, strict=True):
            if tensor.numel():
                place = torch.frombuffer(
                    view, dtype=tensor.dtype, count=tensor.numel(), offset=start
                )
                place.view(tensor.shape).copy_(tensor)
        return size_bytes

    def _room(self, size_bytes: int) -> mmap.mmap:
        if self._view is None or len(self._view) != size_bytes:
            os.ftruncate(self.fd, size_bytes)
            self._view = mmap.mmap(self.fd, size_bytes)
        return self._view


def load_weights(model: nn.Module, fd: int) -> None:
    """Fill `model` from the safetensors bytes in `fd`, every name exactly once.

    Raises:
        RuntimeError, ValueError, KeyError, OSError: other names or shapes than the model has, or
        damaged bytes.
    """
    size_bytes = os.fstat(fd).st_size
    view = mmap.mmap(fd, size_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    start = 8 + int.from_bytes(view[:8], "little")
    if start > size_bytes:
        raise ValueError(f"a header of {start} bytes in a file of {size_bytes}")
    entries = json.loads(view[8:start])
    metadata = entries.pop("__metadata__", {})
    tensors = {name: _tensor(view, start, entry) for name, entry in entries.items()}
    for alias, name in json.loads(metadata.get("aliases", "{}")).items():
        tensors[alias] = tensors[name]
    own = {name.replace(_COMPILED, ""): name for name in model.state_dict()}
    model.load_state_dict({own.get(name, name): tensor for name, tensor in tensors.items()})


def _tensor(view: mmap.mmap, start: int, entry: dict[str, Any]) -> Tensor:
    dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
    begin, end = entry["data_offsets"]
    count = math.prod(shape)
    if end - begin != count * dtype.itemsize or not 0 <= begin <= end <= len(view) - start:
        raise ValueError(f"{count} numbers {entry['dtype']} are said to be at {begin} to {end}")
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(view, dtype=dtype, count=count, offset=start + begin).view(shape)


def _describe(model: nn.Module) -> tuple[dict[str, Tensor], bytes]:
    """State dict without torch.compile's prefixes, larger types first, and the file's header.

    Names that share memory become aliases of the first.
    """
    found: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for prefixed, tensor in model.state_dict().items():
        name = prefixed.replace(_COMPILED, "")
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
            found[name] = tensor.detach()
    tensors = dict(sorted(found.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    entries: dict[str, Any] = {"__metadata__": {"aliases": json.dumps(aliases)}}
    begins, _ = _places(tensors, 0)
    for (name, tensor), begin in zip(tensors.items(), begins, strict=True):
        if tensor.dtype not in _NAMES:
            raise ValueError(f"{name} is {tensor.dtype}, which safetensors cannot hold")
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, begin + tensor.numel() * tensor.dtype.itemsize],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return tensors, len(text).to_bytes(8, "little") + text


def _places(tensors: dict[str, Tensor], start: int) -> tuple[list[int], int]:
    """Where each tensor begins, and where the last one ends."""
    starts = []
    for tensor in tensors.values():
        starts.append(start)
        start += tensor.numel() * tensor.dtype.itemsize
    return starts, start
