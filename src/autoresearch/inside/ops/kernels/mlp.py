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
        if IS_BACKWARD:
            first = _back(squares, row, column, first)
            second = _back(squares, row, column + COLUMNS // 2, second)
        else:
            first = _forth(first)
            second = _forth(second)
        out.store([row, column], first.to(out.dtype))
        out.store([row, column + COLUMNS // 2], second.to(out.dtype))


@triton.jit
def _forth(sums):
    """The square of the ReLU."""
    positive = tl.maximum(sums, 0.0)
    return positive * positive


@triton.jit
def _back(squares, row, column, sums):
    """Times the slope that belongs to what was kept."""
    return sums * 2.0 * tl.sqrt(squares.load([row, column]).to(tl.float32))
