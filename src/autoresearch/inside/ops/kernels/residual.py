"""The residual stream: sums and their norms in one pass, and the way back."""
# mypy: ignore-errors

import triton
import triton.language as tl

# scalars lie side by side in one parameter: most of them where 16 does not divide the address
scalars_anywhere = triton.jit(do_not_specialize_on_alignment=["resid", "factor", "factors"])


@scalars_anywhere
def add_norm(
    x,  # (N, C)
    y,  # (N, C), read if HAS_Y
    x0,  # (N, C), read if IS_MIXED
    factor,  # scalar, likewise
    resid,  # scalar, likewise
    total,  # (N, C), written
    normed,  # (N, C), written
    first,  # (N, FRONT), written
    size,  # (N,) float32, written
    N,
    C,
    FRONT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_Y: tl.constexpr,
    IS_MIXED: tl.constexpr,
):
    """x + y or resid (x + y + factor x0), and that over its root mean square."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    inside = (rows < N)[:, None] & (columns < C)
    wide = rows.to(tl.int64)[:, None]
    place = wide * C + columns
    sums = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if HAS_Y:
        sums += tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
    if IS_MIXED:
        mixed = tl.load(x0 + place, mask=inside, other=0.0).to(tl.float32)
        sums += mixed * tl.load(factor).to(tl.float32)
        sums *= tl.load(resid).to(tl.float32)
    length = tl.sqrt(tl.sum(sums * sums, 1) / C + 1e-6)
    unit = (sums * (1.0 / length)[:, None]).to(normed.dtype.element_ty)
    tl.store(total + place, sums.to(total.dtype.element_ty), mask=inside)
    if FRONT > 0:
        tl.store(first + wide * FRONT + columns, unit, mask=inside & (columns < FRONT))
    tl.store(normed + place, unit, mask=inside)
    tl.store(size + rows, length, mask=rows < N)


@scalars_anywhere
def add_norm_backward(
    dtotal,  # (N, C), read if HAS_TOTAL
    dnormed,  # (N, C)
    dfirst,  # (N, FRONT)
    normed,  # (N, C)
    size,  # (N,)
    resid,  # scalar, read if IS_MIXED
    dx,  # (N, C), written
    parts,  # (num_programs,) float32, written if IS_MIXED
    N,
    C,
    FRONT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_TOTAL: tl.constexpr,
    IS_MIXED: tl.constexpr,
):
    """The way back of add_norm; parts are sums of the gradient times the sum."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    inside = (rows < N)[:, None] & (columns < C)
    wide = rows.to(tl.int64)[:, None]
    place = wide * C + columns
    length = tl.load(size + rows, mask=rows < N, other=1.0)[:, None]
    unit = tl.load(normed + place, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(dnormed + place, mask=inside, other=0.0).to(tl.float32)
    if FRONT > 0:
        is_front = inside & (columns < FRONT)
        more = tl.load(dfirst + wide * FRONT + columns, mask=is_front, other=0.0)
        slope += more.to(tl.float32)
    along = tl.sum(slope * unit, 1)[:, None] / C
    slope = (slope - unit * along) / length
    if HAS_TOTAL:
        slope += tl.load(dtotal + place, mask=inside, other=0.0).to(tl.float32)
    if IS_MIXED:
        tl.store(parts + tl.program_id(0), tl.sum(tl.sum(slope * unit * length, 1), 0))
        slope *= tl.load(resid).to(tl.float32)
    tl.store(dx + place, slope.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def _add_one(sums, grad, x0, factors, parts, place, inside, INDEX: tl.constexpr):
    """sums + grad times its factor; the sum of grad times x0 is stored."""
    slope = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(parts + INDEX * tl.num_programs(0) + tl.program_id(0), tl.sum(slope * x0, 0))
    return sums + slope * tl.load(factors + INDEX)


@scalars_anywhere
def share_backward(
    straight,  # (N,), read if HAS_STRAIGHT
    a,  # nine gradients (N,), the first NUM read
    b,
    c,
    d,
    e,
    f,
    g,
    h,
    i,
    x0,  # (N,)
    factors,  # (NUM,) float32
    total,  # (N,), written
    parts,  # (NUM, number of programs) float32, written
    N,
    NUM: tl.constexpr,
    HAS_STRAIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """total = straight + the sum of gradients times their factors; parts: gradients times x0."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < N
    mixed = tl.load(x0 + place, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros((BLOCK,), tl.float32)
    if HAS_STRAIGHT:
        sums += tl.load(straight + place, mask=inside, other=0.0).to(tl.float32)
    sums = _add_one(sums, a, mixed, factors, parts, place, inside, 0)
    if NUM > 1:
        sums = _add_one(sums, b, mixed, factors, parts, place, inside, 1)
    if NUM > 2:
        sums = _add_one(sums, c, mixed, factors, parts, place, inside, 2)
    if NUM > 3:
        sums = _add_one(sums, d, mixed, factors, parts, place, inside, 3)
    if NUM > 4:
        sums = _add_one(sums, e, mixed, factors, parts, place, inside, 4)
    if NUM > 5:
        sums = _add_one(sums, f, mixed, factors, parts, place, inside, 5)
    if NUM > 6:
        sums = _add_one(sums, g, mixed, factors, parts, place, inside, 6)
    if NUM > 7:
        sums = _add_one(sums, h, mixed, factors, parts, place, inside, 7)
    if NUM > 8:
        sums = _add_one(sums, i, mixed, factors, parts, place, inside, 8)
    tl.store(total + place, sums.to(total.dtype.element_ty), mask=inside)
