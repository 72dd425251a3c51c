"""The residual stream: sums and their norms in one pass, and the way back."""
# mypy: ignore-errors

import triton
import triton.language as tl

# scalars lie side by side in one parameter: most of them where 16 does not divide the address
scalars_anywhere = triton.jit(do_not_specialize_on_alignment=["resid", "mix"])


@scalars_anywhere
def add_norm(
    x,  # (N, C)
    y,  # (N, C), read if HAS_Y
    x0,  # (N, C), read if HAS_X0
    resid,  # scalar, likewise
    mix,  # scalar, likewise
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
    HAS_X0: tl.constexpr,
):
    """x + y or resid (x + y) + mix x0, and that over its root mean square."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    inside = (rows < N)[:, None] & (columns < C)
    wide = rows.to(tl.int64)[:, None]
    place = wide * C + columns
    sums = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if HAS_Y:
        sums += tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
    if HAS_X0:
        mixed = tl.load(x0 + place, mask=inside, other=0.0).to(tl.float32)
        sums = sums * tl.load(resid).to(tl.float32) + mixed * tl.load(mix).to(tl.float32)
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
    x0,  # (N, C), read if HAS_X0
    resid,  # scalar, likewise
    mix,  # scalar, likewise
    dx,  # (N, C), written
    dx0,  # (N, C), written if HAS_X0
    parts,  # (2, num_programs) float32, written if HAS_X0
    N,
    C,
    num_programs,
    FRONT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_TOTAL: tl.constexpr,
    HAS_X0: tl.constexpr,
):
    """The way back of add_norm; parts are sums of the gradient times the sum, and times x0."""
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
    if HAS_X0:
        mixed = tl.load(x0 + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(parts + tl.program_id(0), tl.sum(tl.sum(slope * unit * length, 1), 0))
        other = tl.sum(tl.sum(slope * mixed, 1), 0)
        tl.store(parts + num_programs + tl.program_id(0), other)
        mixed = slope * tl.load(mix).to(tl.float32)
        tl.store(dx0 + place, mixed.to(dx0.dtype.element_ty), mask=inside)
        slope = slope * tl.load(resid).to(tl.float32)
    tl.store(dx + place, slope.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def add_up(a, b, c, d, e, f, g, h, i, j, total, N, NUM: tl.constexpr, BLOCK: tl.constexpr):
    """total = the sum of the first NUM of ten arrays (N,)."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < N
    sums = tl.load(a + place, mask=inside, other=0.0).to(tl.float32)
    if NUM > 1:
        sums += tl.load(b + place, mask=inside, other=0.0).to(tl.float32)
    if NUM > 2:
        sums += tl.load(c + place, mask=inside, other=0.0).to(tl.float32)
    if NUM > 3:
        sums += tl.load(d + place, mask=inside, other=0.0).to(tl.float32)
    if NUM > 4:
        sums += tl.load(e + place, mask=inside, other=0.0).to(tl.float32)
    if NUM > 5:
        sums += tl.load(f + place, mask=inside, other=0.0).to(tl.float32)
    if NUM > 6:
        sums += tl.load(g + place, mask=inside, other=0.0).to(tl.float32)
    if NUM > 7:
        sums += tl.load(h + place, mask=inside, other=0.0).to(tl.float32)
    if NUM > 8:
        sums += tl.load(i + place, mask=inside, other=0.0).to(tl.float32)
    if NUM > 9:
        sums += tl.load(j + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(total + place, sums.to(total.dtype.element_ty), mask=inside)
