"""The sizes of a model, as far as kernels are compiled for them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

Form = tuple[bool, bool]  # of a layer's heads: with a value embedding, with an offset


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
        offsets: whether half of its keys are those of the token before, for each layer.
        value_layers: layers with a value embedding.
        gated_layers: layers with a gate.
        front: channels that gates look at.
    """

    context: int
    vocab_size: int
    width: int
    num_heads: int
    kv_heads: int
    head_dim: int
    windows: Sequence[int]
    offsets: Sequence[bool]
    value_layers: Collection[int]
    gated_layers: Collection[int]
    front: int

    @property
    def num_layers(self) -> int:
        """Blocks."""
        return len(self.windows)

    @property
    def forms(self) -> list[Form]:
        """How heads are split, each way once."""
        return sorted({(i in self.value_layers, self.offsets[i]) for i in range(self.num_layers)})

    @property
    def fronts(self) -> list[int]:
        """Channels that gates look at, for each layer."""
        return [self.front if i in self.gated_layers else 0 for i in range(self.num_layers)]
