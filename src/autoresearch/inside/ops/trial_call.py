"""Whether an operator gives here what its twin gives: asked before training relies on it, and once
for a set of compile caches.

A process that only scores builds its model without gradients; it asks for the way forward alone, as
kernels of the way back would be compiled for nothing there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

TOLERANCE = 0.02  # in bfloat16, relative to the twin's norm
NUM_ROWS = 16384  # of a product: more tiles than processors, so that what a later tile meets counts


def once(what: str, device: torch.device, trial: Callable[[], None]) -> None:
    """Call `trial`, unless it went through before and nothing has changed.

    A note lies with what Triton compiled, of `what`, the ways that were tried, the chip, torch, the
    libraries with kernels and the source text of all operators.
    """
    folder = os.environ.get("TRITON_CACHE_DIR")
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    told = f"{what} {chip} {torch.__version__} {_libraries()} {_sources()}"
    note = Path(folder or "", "trials", hashlib.sha256(told.encode()).hexdigest())
    forth, both = note.with_suffix(".forth"), note.with_suffix(".both")
    if folder and (both.exists() or (forth.exists() and not torch.is_grad_enabled())):
        return
    trial()
    if folder:
        note.parent.mkdir(parents=True, exist_ok=True)
        (both if torch.is_grad_enabled() else forth).touch()


def why_not(what: str, device: torch.device, trial: Callable[[], None]) -> str:
    """Empty if a trial goes through (`once`), else its error in a line."""
    try:
        once(what, device, trial)
    except Exception as error:  # noqa: BLE001 - whatever a library throws, plain torch remains
        return f"{type(error).__name__}: {error}".splitlines()[0][:120]
    return ""


@cache
def _libraries() -> str:
    versions = []
    for name in ("triton", "flash-attn-4", "quack-kernels"):
        with suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    return ", ".join(versions)


@cache
def _sources() -> str:
    texts = (path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))
    return hashlib.sha256(b"".join(texts)).hexdigest()


def compare(pairs: Iterable[tuple[Tensor, Tensor]], what: str = "") -> None:
    """Each result beside its twin's.

    Raises:
        ValueError: one is off by more than the tolerance, or is not finite.
    """
    for got, wanted in pairs:
        off = float((got.float() - wanted.float()).norm() / wanted.float().norm())
        if not off < TOLERANCE:
            raise ValueError(f"{what}off by {off:.3g}")


def normal(device: torch.device, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal random numbers in bfloat16, the same for the same shapes."""
    generator = torch.Generator(device).manual_seed(0)
    return [
        torch.randn(shape, device=device, dtype=torch.bfloat16, generator=generator)
        for shape in shapes
    ]


def both_ways(
    function: Callable[..., Sequence[Tensor]], inputs: Iterable[Tensor], grads: Sequence[Tensor]
) -> list[Tensor]:
    """What `function` gives for `inputs`; with gradients enabled, also what comes back for them."""
    own = [t.clone().requires_grad_(torch.is_grad_enabled()) for t in inputs]
    outs = list(function(*own))
    if not torch.is_grad_enabled():
        return outs
    back = torch.autograd.grad(outs, own, [g.to(outs[0].dtype) for g in grads])
    return [t.detach() for t in (*outs, *back)]
