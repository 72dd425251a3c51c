"""Numbers narrowed to float8."""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def narrow(x, out, N: tl.int64, factor, BLOCK: tl.constexpr):
    """out (N,) = x (N,) times factor, rounded to 4 bits of exponent and 3 of fraction.

    What is larger than the largest such number, 448, becomes it; NaN stays.
    """
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < N
    values = tl.load(x + places, mask=inside).to(tl.float32) * factor
    tl.store(out + places, values.to(tl.float8e4nv), mask=inside)
