"""A matrix product with the MLP's activation, or its slope, applied as it is written."""
# mypy: ignore-errors

import triton
import triton.language as tl


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
    leak,
    IS_BACKWARD: tl.constexpr,
    IS_LEAKY: tl.constexpr,
    LAST_BIT: tl.constexpr,  # where the last bit of a square is when it is a float32
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
        if IS_BACKWARD:
            first = _back(squares, row, column, first, leak, IS_LEAKY, LAST_BIT)
            second = _back(squares, row, column + COLUMNS // 2, second, leak, IS_LEAKY, LAST_BIT)
        else:
            first = _forth(first, leak, IS_LEAKY, LAST_BIT)
            second = _forth(second, leak, IS_LEAKY, LAST_BIT)
        out.store([row, column], first.to(out.dtype))
        out.store([row, column + COLUMNS // 2], second.to(out.dtype))


@triton.jit
def _forth(sums, leak, IS_LEAKY: tl.constexpr, LAST_BIT: tl.constexpr):
    """The square of the (leaky) ReLU; with a leak odd below zero and even above, in its type."""
    positive = tl.maximum(sums, 0.0)
    result = positive * positive
    if IS_LEAKY:
        negative = leak * (sums - positive)
        UNIT: tl.constexpr = 1 << LAST_BIT
        side = tl.where(sums < 0, UNIT, 0)
        bits = (result + negative * negative).to(tl.int32, bitcast=True)
        bits = ((bits + (UNIT - side)) & (-2 * UNIT)) | side
        result = bits.to(tl.float32, bitcast=True)
    return result


@triton.jit
def _back(squares, row, column, sums, leak, IS_LEAKY: tl.constexpr, LAST_BIT: tl.constexpr):
    """Times the slope that belongs to what was kept."""
    kept = squares.load([row, column]).to(tl.float32)
    slope = 2.0 * tl.sqrt(kept)
    if IS_LEAKY:
        side = (kept.to(tl.int32, bitcast=True) >> LAST_BIT) & 1
        slope = tl.where(side == 1, -leak * slope, slope)
    return sums * slope
