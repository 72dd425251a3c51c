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
    N,
    V,
    cap,
    scale,
    BLOCK_V: tl.constexpr,
    IS_FAST: tl.constexpr,  # tanh by the hardware instruction: off by 2^-11 at most
):
    """Cross-entropy of cap * tanh(logits / cap), and its gradient x scale, over the logits.

    Programs take rows in turn; each reads its next row while it computes one.
    """
    columns = tl.arange(0, BLOCK_V)
    inside = columns < V
    start, step = tl.program_id(0), tl.num_programs(0)
    place = logits + start.to(tl.int64) * stride
    following = tl.load(place + columns, mask=inside, other=0.0)
    for row in tl.range(start, N, step):
        raw = following.to(tl.float32)
        target = tl.load(targets + row)
        wanted = _tanh(tl.load(place + target).to(tl.float32) * (1.0 / cap), IS_FAST)
        ahead = logits + tl.minimum(row + step, N - 1).to(tl.int64) * stride
        following = tl.load(ahead + columns, mask=inside, other=0.0)
        tanh = _tanh(raw * (1.0 / cap), IS_FAST)
        powers = tl.exp2(tanh * (cap * 1.4426950408889634))  # no shift: the cap bounds it
        total = tl.sum(tl.where(inside, powers, 0.0), 0)
        tl.store(losses + row, tl.log(total) - cap * wanted)
        share = powers * (scale / total) - tl.where(columns == target, scale, 0.0)
        gradient = share - share * tanh * tanh
        tl.store(place + columns, gradient.to(logits.dtype.element_ty), mask=inside)
        place = ahead


@triton.jit
def _tanh(x, IS_FAST: tl.constexpr):
    if IS_FAST:
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def softcap(logits, out, N: tl.int64, cap, BLOCK: tl.constexpr):
    """out (N,) float32 = cap * tanh(logits / cap)."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < N
    raw = tl.load(logits + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, cap * _tanh(raw / cap, False), mask=inside)


@triton.jit
def split_heads(
    qkv,  # (N, (H + 2 G) 2 HALF)
    cos,  # (T, HALF)
    sin,  # (T, HALF)
    opening,  # (N, G), read if HAS_VALUE
    value,  # (N, G 2 HALF), read if HAS_VALUE
    q,  # (N, H 2 HALF), written
    k,  # (N, G 2 HALF), written
    v,  # (N, G 2 HALF), written if WRITES_VALUES
    N,
    T,
    gain,
    H: tl.constexpr,
    G: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_VALUE: tl.constexpr,
    WRITES_VALUES: tl.constexpr,
    OFFSET: tl.constexpr,  # the slower half of a key's channels is that of the token before
):
    """One program some tokens, all heads: turned and normed queries and keys, mixed values."""
    D: tl.constexpr = 2 * HALF
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    half = tl.arange(0, HALF)[None, :]
    inside = (rows < N)[:, None]
    angle = (rows % T)[:, None] * HALF + half
    rows = rows.to(tl.int64)
    c = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
    source = qkv + rows[:, None] * ((H + 2 * G) * D)
    keys, c_key, s_key = source, c, s
    if OFFSET:
        keys = qkv + _before(rows, half, N, HALF) * ((H + 2 * G) * D)
        comes = (half < HALF // 2) | (rows % T > 0)[:, None]
        c_key, s_key = tl.where(comes, c, 0.0), tl.where(comes, s, 0.0)
    for head in tl.static_range(H + G):
        if head < H:
            left, right, scale = _turned(source + head * D + half, c, s, inside, HALF)
            goal = q + rows[:, None] * (H * D) + head * D + half
        else:
            left, right, scale = _turned(keys + head * D + half, c_key, s_key, inside, HALF)
            goal = k + rows[:, None] * (G * D) + (head - H) * D + half
        scale *= gain
        tl.store(goal, (left * scale).to(q.dtype.element_ty), mask=inside)
        tl.store(goal + HALF, (right * scale).to(q.dtype.element_ty), mask=inside)
    whole = tl.arange(0, D)[None, :]
    for head in tl.static_range(G if WRITES_VALUES else 0):
        place = rows[:, None] * (G * D) + head * D + whole
        own = tl.load(source + (H + G + head) * D + whole, mask=inside, other=0.0)
        if HAS_VALUE:
            gate = tl.load(opening + rows * G + head, mask=rows < N, other=0.0).to(tl.float32)
            mixed = tl.load(value + place, mask=inside, other=0.0).to(tl.float32)
            own = own.to(tl.float32) + 2.0 * tl.sigmoid(gate)[:, None] * mixed
        tl.store(v + place, own.to(v.dtype.element_ty), mask=inside)


@triton.jit
def _open_back(opening, value, dvalue, dopening, gradient, N, rows):
    """Gradients of a value embedding (rows, D) and of the gate (rows,) that let it in."""
    inside = rows < N
    gate = tl.sigmoid(tl.load(opening, mask=inside, other=0.0).to(tl.float32))
    mixed = tl.load(value, mask=inside[:, None], other=0.0).to(tl.float32)
    gradient = gradient.to(tl.float32)
    own = (2.0 * gate[:, None] * gradient).to(dvalue.dtype.element_ty)
    tl.store(dvalue, own, mask=inside[:, None])
    slope = tl.sum(gradient * mixed, 1) * (2.0 * gate * (1.0 - gate))
    tl.store(dopening, slope.to(dopening.dtype.element_ty), mask=inside)


@triton.jit
def split_heads_backward(
    dq,  # (N, H 2 HALF)
    dk,  # (N, G 2 HALF)
    dv,  # (N, G 2 HALF), read unless IN_PLACE
    qkv,  # (N, (H + 2 G) 2 HALF)
    cos,  # (T, HALF)
    sin,  # (T, HALF)
    opening,  # (N, G), read if HAS_VALUE
    value,  # (N, G 2 HALF), read if HAS_VALUE
    dqkv,  # (N, (H + 2 G) 2 HALF), written
    dopening,  # (N, G), written if HAS_VALUE
    dvalue,  # (N, G 2 HALF), written if HAS_VALUE
    N,
    T,
    gain,
    H: tl.constexpr,
    G: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_VALUE: tl.constexpr,
    IN_PLACE: tl.constexpr,  # the gradient of the values already lies in dqkv
    OFFSET: tl.constexpr,
):
    """The way back of split_heads."""
    D: tl.constexpr = 2 * HALF
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    half = tl.arange(0, HALF)[None, :]
    inside = (rows < N)[:, None]
    angle = (rows % T)[:, None] * HALF + half
    rows = rows.to(tl.int64)
    c = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
    wide = rows[:, None] * ((H + 2 * G) * D)
    keys, c_key, s_key = wide, c, s
    if OFFSET:
        keys = _before(rows, half, N, HALF) * ((H + 2 * G) * D)
        comes = (half < HALF // 2) | (rows % T > 0)[:, None]
        c_key, s_key = tl.where(comes, c, 0.0), tl.where(comes, s, 0.0)
    for head in tl.static_range(H + G):
        if head < H:
            place, own = dq + rows[:, None] * (H * D) + head * D + half, wide + head * D + half
            c_own, s_own = c, s
        else:
            place = dk + rows[:, None] * (G * D) + (head - H) * D + half
            own, c_own, s_own = keys + head * D + half, c_key, s_key
        dleft = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        dright = tl.load(place + HALF, mask=inside, other=0.0).to(tl.float32)
        left, right, scale = _turned(qkv + own, c_own, s_own, inside, HALF)
        left, right = left * scale, right * scale
        along = (tl.sum(dleft * left, 1) + tl.sum(dright * right, 1))[:, None] / D
        scale *= gain
        dleft, dright = (dleft - left * along) * scale, (dright - right * along) * scale
        dleft, dright = dleft * c_own - dright * s_own, dleft * s_own + dright * c_own
        tl.store(dqkv + own, dleft.to(dqkv.dtype.element_ty), mask=inside)
        tl.store(dqkv + own + HALF, dright.to(dqkv.dtype.element_ty), mask=inside)
    whole = tl.arange(0, D)[None, :]
    for head in tl.static_range(0 if IN_PLACE and not HAS_VALUE else G):
        place = rows[:, None] * (G * D) + head * D + whole
        goal = dqkv + wide + (H + G + head) * D + whole
        if IN_PLACE:
            gradient = tl.load(goal, mask=inside, other=0.0)
        else:
            gradient = tl.load(dv + place, mask=inside, other=0.0)
            tl.store(goal, gradient, mask=inside)
        if HAS_VALUE:
            gate = rows * G + head
            _open_back(
                opening + gate, value + place, dvalue + place, dopening + gate, gradient, N, rows
            )


@triton.jit
def _before(rows, half, N, HALF: tl.constexpr):
    """The row that each channel of a key comes from: its own or, slow ones, the one before.

    The first of all comes from the last. With zeros as cosine and sine, the first token of a row
    gets 0 and leaves 0 where the last of another row, which nobody looks at, wants it as gradient.
    """
    before = tl.where(rows > 0, rows, N)[:, None] - 1
    return tl.where(half < HALF // 2, rows[:, None], before)


@triton.jit
def _turned(source, c, s, inside, HALF: tl.constexpr):
    """Both halves of heads, turned, and the factor that norms them, (ROWS, 1)."""
    left = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    left, right = left * c + right * s, right * c - left * s
    square = tl.sum(left * left, 1) + tl.sum(right * right, 1)
    return left, right, tl.rsqrt(square / (2 * HALF) + 1e-6)[:, None]


@triton.jit
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
    T,  # tokens a row
    C,
    SHIFT: tl.constexpr,  # channels of normed that go to the next token of the row
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
    if SHIFT > 0:  # the last token of a row leaves 0 to the first of another
        place = _after(rows, columns, N, SHIFT) * C + columns
        unit = tl.where((columns < SHIFT) & (rows % T == T - 1)[:, None], 0.0, unit)
    tl.store(normed + place, unit, mask=inside)
    tl.store(size + rows, length, mask=rows < N)


@triton.jit
def _after(rows, columns, N, SHIFT: tl.constexpr):
    """The row that each channel goes to: the one after (of the last, the first) or its own."""
    after = tl.where(rows < N - 1, rows + 1, 0).to(tl.int64)[:, None]
    return tl.where(columns < SHIFT, after, rows.to(tl.int64)[:, None])


@triton.jit
def add_norm_backward(
    dtotal,  # (N, C), read if HAS_TOTAL
    dnormed,  # (N, C)
    dfirst,  # (N, FRONT)
    normed,  # (N, C); with SHIFT the sum before the norm
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
    T,
    SHIFT: tl.constexpr,
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
    unit = unit / length if SHIFT > 0 else unit
    goal = _after(rows, columns, N, SHIFT) * C + columns if SHIFT > 0 else place
    slope = tl.load(dnormed + goal, mask=inside, other=0.0).to(tl.float32)
    if SHIFT > 0:
        slope = tl.where((columns < SHIFT) & (rows % T == T - 1)[:, None], 0.0, slope)
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
