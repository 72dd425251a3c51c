"""The sizes of a model, as far as kernels are compiled for them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What train.py says of its model.

    Args:
        context: tokens of a training row.
        vocab_size: rows of the head.
        width: channels of the residual stream.
        num_heads: query heads.
        kv_heads: heads of keys and values.
        head_dim: channels of a head.
        windows: how far back each layer sees, tokens.
        has_offset: whether half of each key is that of the token before.
        value_layers: layers with a value embedding, which has a gate.
        has_head_gate: whether all layers have gates on heads.
        front: channels that gates look at.
        has_documents: whether layers that see all of the context keep to their document.
        has_float8: whether it trains with products of what is normed in float8, on the way forward.
    """

    context: int
    vocab_size: int
    width: int
    num_heads: int
    kv_heads: int
    head_dim: int
    windows: Sequence[int]
    has_offset: bool
    value_layers: Collection[int]
    has_head_gate: bool
    front: int
    has_documents: bool
    has_float8: bool = False  # a train.py that is older does not say

    @property
    def num_layers(self) -> int:
        """Blocks."""
        return len(self.windows)

    @property
    def reaches(self) -> list[int]:
        """Windows as attention is told them, each once, in order; -1 sees all that came before."""
        return sorted({window if window < self.context - 1 else -1 for window in self.windows})

    @property
    def value_forms(self) -> list[bool]:
        """Whether layers have a value embedding, each answer once."""
        return sorted({i in self.value_layers for i in range(self.num_layers)})

    @property
    def fronts(self) -> list[int]:
        """Channels that gates look at, for each layer."""
        gated = range(self.num_layers) if self.has_head_gate else self.value_layers
        return [self.front if i in gated else 0 for i in range(self.num_layers)]
