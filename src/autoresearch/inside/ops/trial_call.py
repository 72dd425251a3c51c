"""Whether an operator gives here what its twin gives: asked once, before training relies on it.

A process that only scores builds its model without gradients; it asks for the way forward alone, as
kernels of the way back would be compiled for nothing there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

TOLERANCE = 0.02  # in bfloat16, relative to the twin's norm


def compare(pairs: Iterable[tuple[Tensor, Tensor]], what: str = "") -> None:
    """Each result beside its twin's.

    Raises:
        ValueError: one is off by more than the tolerance, or is not finite.
    """
    for got, wanted in pairs:
        off = float((got.float() - wanted.float()).norm() / wanted.float().norm())
        if not off < TOLERANCE:
            raise ValueError(f"{what}off by {off:.3g}")


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
