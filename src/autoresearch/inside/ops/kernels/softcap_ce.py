"""The cross-entropy of softly capped logits in one pass, and the cap alone."""
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
        is_token = (target >= 0) & (target < V)  # of what is none the loss is NaN
        chosen = tl.load(place + target, mask=is_token, other=float("nan")).to(tl.float32)
        wanted = _tanh(chosen * (1.0 / cap), IS_FAST)
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
def rescale(x, factor, N, BLOCK: tl.constexpr):
    """x (N,) times a scalar on the device, in place; nothing is moved where that is 1."""
    times = tl.load(factor)
    if times != 1.0:
        place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(x + place, mask=place < N, other=0.0).to(tl.float32) * times
        tl.store(x + place, value.to(x.dtype.element_ty), mask=place < N)
