"""Memory of a CUDA device that two processes in different namespaces see, by the driver's
virtual-memory calls.

The scorer creates it and exports a file descriptor; a presenter inherits the descriptor, imports
and maps it. The usual CUDA IPC handles, which torch shares tensors by, fail across namespaces.
Needs `cuda.bindings` (comes with torch's CUDA builds) and a current CUDA context (torch makes one).
CUDA driver API, "Virtual Memory Management".

All of it needs a GPU, so only tests/gpu and the tests marked `gpu` cover it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A mapped allocation: its address in this process, its size, its device."""

    address: int
    size_bytes: int
    ordinal: int


def create(size_bytes: int, ordinal: int) -> tuple[DeviceMemory, int]:  # pragma: no cover
    """Allocate at least `size_bytes` on device `ordinal`; the mapping and a descriptor to hand to
    others.

    Raises:
        RuntimeError: a driver call failed, such as for want of memory.
    """
    driver, properties, handle_type = _driver(ordinal)
    size_bytes = _rounded(driver, properties, size_bytes)
    handle = _checked(driver, driver.cuMemCreate(size_bytes, properties, 0))
    fd = _checked(driver, driver.cuMemExportToShareableHandle(handle, handle_type, 0))
    return _map(driver, handle, size_bytes, properties, ordinal), int(fd)


def import_fd(fd: int, size_bytes: int, ordinal: int) -> DeviceMemory:  # pragma: no cover
    """Map what another process exported as `fd`; `size_bytes` as it asked for.

    Raises:
        RuntimeError: a driver call failed.
    """
    driver, properties, handle_type = _driver(ordinal)
    size_bytes = _rounded(driver, properties, size_bytes)
    handle = _checked(driver, driver.cuMemImportFromShareableHandle(fd, handle_type))
    return _map(driver, handle, size_bytes, properties, ordinal)


def as_tensor(memory: DeviceMemory, shape: tuple[int, ...]) -> Tensor:  # pragma: no cover
    """A float32 tensor over the memory, without copying."""
    import torch

    class View:
        __cuda_array_interface__ = {  # noqa: RUF012  the protocol wants a plain attribute
            "shape": shape,
            "typestr": "<f4",
            "data": (memory.address, False),
            "version": 3,
        }

    return torch.as_tensor(View(), device=f"cuda:{memory.ordinal}")


def _driver(ordinal: int) -> tuple[Any, Any, Any]:  # pragma: no cover
    import torch
    from cuda.bindings import driver

    torch.zeros(1, device=f"cuda:{ordinal}")  # makes the context current
    handle_type = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    properties = driver.CUmemAllocationProp()
    properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = ordinal
    properties.requestedHandleTypes = handle_type
    return driver, properties, handle_type


def _rounded(driver: Any, properties: Any, size_bytes: int) -> int:  # pragma: no cover
    flags = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
    step = int(_checked(driver, driver.cuMemGetAllocationGranularity(properties, flags)))
    return -(-size_bytes // step) * step


def _map(
    driver: Any, handle: Any, size_bytes: int, properties: Any, ordinal: int
) -> DeviceMemory:  # pragma: no cover
    address = _checked(driver, driver.cuMemAddressReserve(size_bytes, 0, 0, 0))
    _checked(driver, driver.cuMemMap(address, size_bytes, 0, handle, 0))
    access = driver.CUmemAccessDesc()
    access.location = properties.location
    access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    _checked(driver, driver.cuMemSetAccess(address, size_bytes, [access], 1))
    return DeviceMemory(int(address), size_bytes, ordinal)


def _checked(driver: Any, result: tuple[Any, ...]) -> Any:  # pragma: no cover
    code, *values = result
    if code != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"the CUDA driver answered {code!r}; run `autoresearch doctor`")
    return values[0] if values else None
