"""Gradients of tables: rows of equal ids are added up."""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def segment_sum(
    grad,  # (N, K)
    ids,  # (N,) sorted
    order,  # (N,) where in grad each sorted id stands
    table,  # (V, K) float32, added to
    N,
    K,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program a block of sorted ids: rows of equal ids are summed, then added to the table."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = rows < N
    own = tl.load(ids + rows, mask=inside, other=-1)
    following = tl.load(ids + rows + 1, mask=rows + 1 < N, other=-1)
    source = tl.load(order + rows, mask=inside, other=0).to(tl.int64)
    is_used = inside[:, None] & (columns < K)[None, :]
    values = tl.load(grad + source[:, None] * K + columns[None, :], mask=is_used, other=0.0)
    is_equal = (own[:, None] == own[None, :]).to(values.dtype)
    sums = tl.dot(is_equal, values, input_precision="ieee")  # exact: zeros and ones
    is_last = (own != following) | (tl.arange(0, ROWS) == ROWS - 1)
    place = table + own.to(tl.int64)[:, None] * K + columns[None, :]
    tl.atomic_add(place, sums, mask=is_used & is_last[:, None], sem="relaxed")
