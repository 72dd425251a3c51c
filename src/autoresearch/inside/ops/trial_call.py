"""Whether an operator gives here what its twin gives: asked once, before training relies on it."""

from __future__ import annotations

from collections.abc import Iterable

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
