"""Queries, keys and values for attention out of one product: rotary embedding, norm, value mix.

One kernel reads the product and writes what attention takes; one more turns the three gradients
into the gradient of the product. Rotated values are made again from the product, not kept. Against
compiled torch this saves two passes over queries and keys, and putting gradients side by side.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoresearch.inside.ops import fa4
from autoresearch.inside.ops.shape import Shape

HEAD_DIMS = (32, 64, 128, 256)  # that the kernels can do; none: plain torch everywhere
ROWS, WARPS = 16, 4  # tokens and warps a program, forward
ROWS_BACK, WARPS_BACK = 16, 4  # backward


def split_heads_twin(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    opening: Tensor | None,
    value: Tensor | None,
    offset: bool,
    gain: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition: qkv (B, T, (H + 2 G) D) -> q (B, T, H, D), k and v (B, T, G, D).

    Args:
        qkv: queries, keys and values side by side.
        cos: (T, 1, D / 2), of the angles by which queries and keys are turned.
        sin: likewise.
        num_heads: H.
        opening: (B, T, G), how far each head opens for `value`, before the sigmoid; or None.
        value: (B, T, G D), added to the values times twice the sigmoid; None with `opening`.
        offset: whether the slower half of each key's channels is that of the token before.
        gain: factor on normed queries and keys.
    """
    B, T, D = qkv.size(0), qkv.size(1), 2 * cos.size(-1)
    heads = qkv.view(B, T, -1, D)
    num_shared = (heads.size(2) - num_heads) // 2
    q, k, v = heads.split([num_heads, num_shared, num_shared], dim=2)
    if opening is not None and value is not None:
        v = v + 2 * torch.sigmoid(opening)[..., None] * value.view(B, T, num_shared, D)
    k = one_back(k) if offset else k
    q, k = (gain * _rotate_norm(x, cos, sin) for x in (q, k))
    return q, k, v


def one_back(k: Tensor) -> Tensor:
    """k (B, T, G, D) with the slower half of the rotary channels from the token before, or 0."""
    k = k.unflatten(-1, (2, 2, -1))  # sides that turn together, fast and slow, D / 4
    slow = F.pad(k[..., 1, :], (0, 0, 0, 0, 0, 0, 1, -1))
    return torch.stack([k[..., 0, :], slow], dim=-2).flatten(-3)


def _rotate_norm(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    x = torch.cat([left * cos + right * sin, right * cos - left * sin], dim=-1)
    return F.rms_norm(x, (x.size(-1),), eps=1e-6)


def split_heads(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    opening: Tensor | None,
    value: Tensor | None,
    offset: bool,
    gain: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the twin, which it is on a CPU."""
    if qkv.device.type == "cpu":
        return split_heads_twin(qkv, cos, sin, num_heads, opening, value, offset, gain)
    check_shapes(qkv, cos, sin, opening, num_heads)
    q, k, v = split_forward(qkv, cos, sin, opening, value, num_heads, offset, gain)
    return q, k, v


def check_shapes(
    qkv: Tensor, cos: Tensor, sin: Tensor, opening: Tensor | None, num_heads: int
) -> None:
    """Plain torch would repeat what is smaller; the kernels would read past its end.

    Raises:
        ValueError: angles are not those of all rows and heads alike, or heads do not open each.
    """
    B, T, _, G, D = _shapes(qkv, cos, num_heads)
    expected = {"cos": (cos, (T, 1, D // 2)), "sin": (sin, (T, 1, D // 2))}
    expected |= {} if opening is None else {"opening": (opening, (B, T, G))}
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)}, expected {shape} by the fast split_heads and "
                "attend_heads; expand it, or change train.py's own split_heads, which then is used"
            )


def is_supported(head_dim: int) -> bool:
    """Whether the kernels can do heads of this size."""
    return head_dim in HEAD_DIMS


def _shapes(qkv: Tensor, cos: Tensor, num_heads: int) -> tuple[int, int, int, int, int]:
    """B, T, H, G, D."""
    B, T, width = qkv.shape
    D = 2 * cos.size(-1)
    return B, T, num_heads, (width // D - num_heads) // 2, D


def launch_forward(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    opening: Tensor | None,
    value: Tensor | None,
    num_heads: int,
    offset: bool,
    gain: float,
    *,
    writes_values: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, T, H, D), k and v (B, T, G, D), each contiguous; v is a stub if not written."""
    from autoresearch.inside.ops.kernels import rotary as kernels

    B, T, H, G, D = _shapes(qkv, cos, num_heads)
    qkv = qkv.contiguous()
    q, k = qkv.new_empty(B, T, H, D), qkv.new_empty(B, T, G, D)
    v = qkv.new_empty((B, T, G, D) if writes_values else (0,))
    kernels.split_heads[(-(-B * T // ROWS),)](
        qkv,
        cos.contiguous(),
        sin.contiguous(),
        opening.contiguous() if opening is not None else qkv,
        value.contiguous() if value is not None else qkv,
        q,
        k,
        v,
        B * T,
        T,
        gain,
        H=H,
        G=G,
        HALF=D // 2,
        ROWS=ROWS,
        HAS_VALUE=value is not None,
        WRITES_VALUES=writes_values,
        OFFSET=offset,
        num_warps=WARPS,
    )
    return q, k, v


def launch_backward(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor | None,
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    opening: Tensor | None,
    value: Tensor | None,
    offset: bool,
    gain: float,
    dqkv: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fill dqkv, whose part of the values is there already if dv is None; dopening and dvalue.

    dq is (B, T, H, D), or sums of FlashAttention as fa4.py has them, (B, H, T D).
    """
    from autoresearch.inside.ops.kernels import rotary as kernels

    is_summed = dq.dim() == 3
    B, T, H, G, D = _shapes(qkv, cos, dq.size(1 if is_summed else 2))
    has_value = value is not None
    dopening = qkv.new_empty(opening.shape if opening is not None else (0,))
    dvalue = qkv.new_empty(value.shape if value is not None else (0,))
    kernels.split_heads_backward[(-(-B * T // ROWS_BACK),)](
        dq.contiguous(),
        dk.contiguous(),
        dqkv if dv is None else dv.contiguous(),
        qkv.contiguous(),
        cos.contiguous(),
        sin.contiguous(),
        opening.contiguous() if opening is not None else qkv,
        value.contiguous() if value is not None else qkv,
        dqkv,
        dopening if has_value else dqkv,
        dvalue if has_value else dqkv,
        B * T,
        T,
        gain,
        H=H,
        G=G,
        HALF=D // 2,
        ROWS=ROWS_BACK,
        HAS_VALUE=has_value,
        IN_PLACE=dv is None,
        OFFSET=offset,
        FROM_SUMS=is_summed,
        num_warps=WARPS_BACK,
    )
    return dopening, dvalue


def call_kernels(device: torch.device, shape: Shape, has_value: bool, is_scored: bool) -> None:
    """Forward and, unless only scored, backward on a small input, as heads.py calls them."""
    T, H, G, D = 64, shape.num_heads, shape.kv_heads, shape.head_dim
    offset = shape.has_offset
    like = torch.zeros((1, T, (H + 2 * G) * D), device=device, dtype=torch.bfloat16)
    cos = like.new_zeros((T, 1, D // 2))
    mix: tuple[Tensor | None, Tensor | None] = (None, None)
    if has_value:
        mix = like.new_zeros((1, T, G)), like.new_zeros((1, T, G * D))
    q, k, _ = launch_forward(like, cos, cos, *mix, H, offset, 1.5, writes_values=has_value)
    if is_scored:
        return
    for as_sums in list_sums(device, shape):
        dq = q.new_zeros((1, H, T * D), dtype=torch.float32) if as_sums else q
        launch_backward(dq, k, None, like, cos, cos, *mix, offset, 1.5, torch.empty_like(like))


def list_sums(device: torch.device, shape: Shape) -> list[bool]:
    """Whether layers read the gradient of queries as sums, each answer once."""
    sizes = (device, shape.head_dim, shape.context)
    return sorted({fa4.leaves_sums(*sizes, r, shape.has_documents) for r in shape.reaches})


@torch.library.custom_op("autoresearch::split_forward", mutates_args=())
def split_forward(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    opening: Tensor | None,
    value: Tensor | None,
    num_heads: int,
    offset: bool,
    gain: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, T, H, D), k and v (B, T, G, D), each contiguous."""
    rest = (opening, value, num_heads, offset, gain)
    return launch_forward(qkv, cos, sin, *rest, writes_values=True)


@split_forward.register_fake
def _(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    opening: Tensor | None,
    value: Tensor | None,
    num_heads: int,
    offset: bool,
    gain: float,
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, H, G, D = _shapes(qkv, cos, num_heads)
    return qkv.new_empty(B, T, H, D), qkv.new_empty(B, T, G, D), qkv.new_empty(B, T, G, D)


@torch.library.custom_op("autoresearch::split_backward", mutates_args=())
def split_backward(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    opening: Tensor | None,
    value: Tensor | None,
    offset: bool,
    gain: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv, opening and value; the last two are empty if there is no value."""
    dqkv = qkv.new_empty(qkv.shape)
    extra = launch_backward(dq, dk, dv, qkv, cos, sin, opening, value, offset, gain, dqkv)
    return dqkv, *extra


@split_backward.register_fake
def _(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    opening: Tensor | None,
    value: Tensor | None,
    offset: bool,
    gain: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dopening = qkv.new_empty(opening.shape if opening is not None else (0,))
    dvalue = qkv.new_empty(value.shape if value is not None else (0,))
    return qkv.new_empty(qkv.shape), dopening, dvalue


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    qkv, cos, sin, opening, value, _, ctx.offset, ctx.gain = inputs
    ctx.has_value = value is not None
    ctx.save_for_backward(qkv, cos, sin, *((opening, value) if ctx.has_value else ()))


def _gradient(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
    qkv, cos, sin, *rest = ctx.saved_tensors
    opening, value = rest if ctx.has_value else (None, None)
    rest = (opening, value, ctx.offset, ctx.gain)
    dqkv, dopening, dvalue = split_backward(dq, dk, dv, qkv, cos, sin, *rest)
    if not ctx.has_value:
        return dqkv, *(7 * [None])
    return dqkv, None, None, dopening, dvalue, None, None, None


split_forward.register_autograd(_gradient, setup_context=_setup)
