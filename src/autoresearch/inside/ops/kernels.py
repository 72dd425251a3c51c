"""The Triton kernels. The modules beside this one launch them and say what they are for."""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def softcap_ce(
    logits,  # (N, V) raw; overwritten with the gradient
    targets,  # (N,)
    losses,  # (N,) float32, written
    stride,  # elements from one row of logits to the next
    V,
    cap,
    scale,
    BLOCK_V: tl.constexpr,
):
    """One program a row: cross-entropy of cap * tanh(logits / cap), and its gradient x scale."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_V)
    inside = columns < V
    raw = tl.load(logits + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    tanh = 1.0 - 2.0 / (tl.exp(raw * (2.0 / cap)) + 1.0)
    powers = tl.where(inside, tl.exp(cap * tanh), 0.0)  # no shift: the cap bounds the exponent
    total = tl.sum(powers, 0)
    is_target = columns == tl.load(targets + row)
    wanted = tl.sum(tl.where(is_target, cap * tanh, 0.0), 0)
    tl.store(losses + row, tl.log(total) - wanted)
    gradient = (powers / total - is_target.to(tl.float32)) * (1.0 - tanh * tanh) * scale
    gradient = gradient.to(logits.dtype.element_ty)
    tl.store(logits + row * stride + columns, gradient, mask=inside)


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


@triton.jit
def gemm_relu2(
    a,  # descriptor of (M, K)
    b,  # descriptor of (N, K)
    out,  # descriptor of (M, N), in half tiles
    squares,  # descriptor of (M, N), in half tiles; read if IS_BACKWARD
    M,
    N,
    K,
    num_programs,
    IS_BACKWARD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Persistent product a b^T with the activation, or its slope, applied to the accumulator."""
    across = tl.cdiv(N, COLUMNS)
    for tile in tl.range(tl.program_id(0), tl.cdiv(M, ROWS) * across, num_programs, flatten=True):
        row = (tile // across) * ROWS
        column = (tile % across) * COLUMNS
        sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for step in range(tl.cdiv(K, DEPTH)):
            left = a.load([row, step * DEPTH])
            right = b.load([column, step * DEPTH])
            sums = tl.dot(left, right.T, sums)
        halves = tl.permute(tl.reshape(sums, (ROWS, 2, COLUMNS // 2)), (0, 2, 1))
        first, second = tl.split(halves)
        _store(out, squares, row, column, first, IS_BACKWARD)
        _store(out, squares, row, column + COLUMNS // 2, second, IS_BACKWARD)


@triton.jit
def _store(out, squares, row, column, sums, IS_BACKWARD: tl.constexpr):
    if IS_BACKWARD:
        kept = squares.load([row, column]).to(tl.float32)
        result = sums * 2.0 * tl.sqrt(kept)
    else:
        positive = tl.maximum(sums, 0.0)
        result = positive * positive
    out.store([row, column], result.to(out.dtype))
