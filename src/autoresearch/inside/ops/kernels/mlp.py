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
