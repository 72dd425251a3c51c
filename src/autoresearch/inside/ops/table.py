"""Embedding tables: rows of all of them for one batch of tokens, and their gradients by one sort.

The backward pass of an ordinary lookup sorts the tokens anew for each table. Here they are sorted
once; then every table's gradient is a segmented sum over the sorted tokens, in float32: within a
block of sorted tokens by a matrix product with the zeros and ones of equal tokens, between blocks
by atomic addition.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoresearch.inside.ops.shape import Shape

_ROWS, _COLUMNS = 64, 64  # of a block


def lookup_twin(tokens: Tensor, embedding: Tensor, values: Tensor) -> tuple[Tensor, list[Tensor]]:
    """tokens (B, T), embedding (V, C), values (n, V, K) -> (B, T, C) and n times (B, T, K)."""
    return F.embedding(tokens, embedding), [F.embedding(tokens, table) for table in values]


def lookup(tokens: Tensor, embedding: Tensor, values: Tensor) -> tuple[Tensor, list[Tensor]]:
    """As the twin, which it is on a CPU."""
    if tokens.device.type == "cpu":
        return lookup_twin(tokens, embedding, values)
    first, *others = _Lookup.apply(tokens, embedding, values)
    return first, others


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, embedding: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(tokens)
        ctx.tables = embedding.shape, embedding.dtype, values.shape, values.dtype
        first, others = lookup_twin(tokens, embedding, values)
        return first, *others

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (tokens,) = ctx.saved_tensors
        shape, dtype, shapes, values_dtype = ctx.tables
        ids, order = tokens.flatten().to(torch.int32).sort()
        embedding = torch.zeros(shape, device=tokens.device, dtype=torch.float32)
        values = torch.zeros(shapes, device=tokens.device, dtype=torch.float32)
        for grad, table in zip(grads, (embedding, *values), strict=True):
            add_rows(grad.flatten(0, -2), ids, order, table)
        return None, embedding.to(dtype), values.to(values_dtype)


def add_rows(grad: Tensor, ids: Tensor, order: Tensor, table: Tensor) -> None:
    """table[ids[i]] += grad[order[i]]: grad (N, K), ids (N,) sorted, table (V, K) float32."""
    import triton

    from autoresearch.inside.ops.kernels import table as kernels

    grad = grad.contiguous()
    num_tokens, width = grad.shape
    grid = (triton.cdiv(num_tokens, _ROWS), triton.cdiv(width, _COLUMNS))
    kernels.segment_sum[grid](
        grad, ids, order, table, num_tokens, width, ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4
    )


def call_kernel(device: torch.device, shape: Shape) -> None:
    """`add_rows` on a small input."""
    grad = torch.zeros((64, shape.width), device=device, dtype=torch.bfloat16)
    ids = torch.zeros(64, device=device, dtype=torch.int32)
    add_rows(grad, ids, ids.long(), grad.float())
