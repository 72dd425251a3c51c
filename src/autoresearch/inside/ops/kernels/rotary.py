"""Queries and keys are turned and normed, values mixed, in one pass; and the way back."""
# mypy: ignore-errors

import triton
import triton.language as tl


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
    from_rows, c_key, s_key = _key_side(rows, half, c, s, N, T, HALF, OFFSET)
    keys = qkv + from_rows * ((H + 2 * G) * D)
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
    dq,  # (N, H 2 HALF), or if FROM_SUMS (N / T, H, T / 64, 2, HALF / 8, 4, 8, 4, 2, 2) float32
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
    FROM_SUMS: tl.constexpr,
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
    from_rows, c_key, s_key = _key_side(rows, half, c, s, N, T, HALF, OFFSET)
    keys = from_rows * ((H + 2 * G) * D)
    for head in tl.static_range(H + G):
        if head < H:
            place, own = dq + rows[:, None] * (H * D) + head * D + half, wide + head * D + half
            c_own, s_own = c, s
        else:
            place = dk + rows[:, None] * (G * D) + (head - H) * D + half
            own, c_own, s_own = keys + head * D + half, c_key, s_key
        if FROM_SUMS and head < H:
            dleft, dright = _read_sums(dq, head, T, H, HALF, ROWS)
        else:
            dleft = tl.load(place, mask=inside, other=0.0).to(tl.float32)
            dright = tl.load(place + HALF, mask=inside, other=0.0).to(tl.float32)
        dleft, dright = _turned_back(qkv + own, c_own, s_own, dleft, dright, inside, gain, HALF)
        tl.store(dqkv + own, dleft.to(dqkv.dtype.element_ty), mask=inside)
        tl.store(dqkv + own + HALF, dright.to(dqkv.dtype.element_ty), mask=inside)
    whole = tl.arange(0, D)[None, :]
    for head in tl.static_range(0 if IN_PLACE and not HAS_VALUE else G):
        place, gate = rows[:, None] * (G * D) + head * D + whole, rows * G + head
        goal = dqkv + wide + (H + G + head) * D + whole
        gradient = tl.load(goal if IN_PLACE else dv + place, mask=inside, other=0.0)
        if not IN_PLACE:
            tl.store(goal, gradient, mask=inside)
        if HAS_VALUE:
            own_value, own_gate = value + place, opening + gate
            _open_back(own_gate, own_value, dvalue + place, dopening + gate, gradient, N, rows)


@triton.jit
def _read_sums(sums, head, T, H: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr):
    """Both halves of the gradient of a head's queries, (ROWS, HALF).

    A tile is 64 tokens of a head. Each half is what the 128 threads of a warpgroup hold (PTX ISA,
    wgmma.mma_async, fragment of D): a warp 16 rows, a thread two columns of two rows that are 8
    apart, and the same again 8 columns on. The first four numbers of all threads come first.
    """
    tl.static_assert(ROWS == 16)  # those of a warp
    first = tl.program_id(0).to(tl.int64) * ROWS
    tile = ((first // T * H + head) * T + first % T // 64 * 64) * (2 * HALF)
    place = tl.arange(0, ROWS * HALF)
    place = tile + first % 64 * 8 + place // 128 * 512 + place % 128
    left, right = tl.load(sums + place), tl.load(sums + 64 * HALF + place)
    scale = (2 * HALF) ** -0.5  # of scores
    return _ordered(left, HALF, ROWS) * scale, _ordered(right, HALF, ROWS) * scale


@triton.jit
def _ordered(half, HALF: tl.constexpr, ROWS: tl.constexpr):
    """From (columns / 8, rows % 8, 4, rows / 8, 2) to (rows, columns)."""
    half = tl.permute(tl.reshape(half, (HALF // 8, 8, 4, ROWS // 8, 2)), (3, 1, 0, 2, 4))
    return tl.reshape(half, (ROWS, HALF))


@triton.jit
def _key_side(rows, half, c, s, N, T, HALF: tl.constexpr, OFFSET: tl.constexpr):
    """The row that each channel of a key comes from, and the key's cosines and sines.

    With OFFSET slow channels are those of the row before, and of the very first those of the last.
    With zeros as cosine and sine, the first token of a row gets 0 and leaves 0 where the last of
    another row, which nobody looks at, wants it as gradient.
    """
    from_rows = rows[:, None]
    if OFFSET:
        is_fast = half < HALF // 2
        before = tl.where(rows > 0, rows, N)[:, None] - 1
        from_rows = tl.where(is_fast, from_rows, before)
        comes = is_fast | (rows % T > 0)[:, None]
        c, s = tl.where(comes, c, 0.0), tl.where(comes, s, 0.0)
    return from_rows, c, s


@triton.jit
def _turned(source, c, s, inside, HALF: tl.constexpr):
    """Both halves of heads, turned, and the factor that norms them, (ROWS, 1)."""
    left = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    left, right = left * c + right * s, right * c - left * s
    square = tl.sum(left * left, 1) + tl.sum(right * right, 1)
    return left, right, tl.rsqrt(square / (2 * HALF) + 1e-6)[:, None]


@triton.jit
def _turned_back(source, c, s, dleft, dright, inside, gain, HALF: tl.constexpr):
    """Gradients of the halves from those of the turned and normed."""
    left, right, scale = _turned(source, c, s, inside, HALF)
    left, right = left * scale, right * scale
    along = (tl.sum(dleft * left, 1) + tl.sum(dright * right, 1))[:, None] / (2 * HALF)
    scale *= gain
    dleft, dright = (dleft - left * along) * scale, (dright - right * along) * scale
    return dleft * c - dright * s, dleft * s + dright * c
