"""Split heads and FlashAttention 4 as one operator, so that values need not be copied.

Attention reads the values where the product of the layer put them, and writes their gradient where
the gradient of the product will be. In a layer with a value embedding the mixed values are written
apart, their gradient in place. Against the two operators this saves four passes over the values in
a plain layer (reading and writing, both ways), and one in a layer with an embedding. The gradient
of queries is read as the library summed it up, where it is one whose order is known (fa4.py).

The window may be a 0-d tensor on the CPU, where reading it makes nobody wait: a block compiled for
one window then serves all. CUDA graphs would keep the first; the operators say so. For the same
reason all layers are told the bounds of documents, and those with a short window look past them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from autoresearch.inside.ops import attention, fa4, rotary
from autoresearch.inside.ops.documents import count_documents, find_bounds
from autoresearch.inside.ops.shape import Shape
from autoresearch.inside.ops.trial_call import both_ways, compare

ENABLED = True  # False: two operators
_TAGS = (torch.Tag.cudagraph_unsafe,)  # a number is read from a tensor while kernels are launched


def attend_heads_twin(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    opening: Tensor | None,
    value: Tensor | None,
    window: int,
    offset: bool,
    documents: Tensor | None,
    gain: float,
) -> Tensor:
    """The definition: qkv (B, T, (H + 2 G) D) -> (B, T, H, D); the rest as in the two modules."""
    heads = rotary.split_heads_twin(qkv, cos, sin, num_heads, opening, value, offset, gain)
    return attention.attend_twin(*heads, window, documents)


def attend_heads(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    opening: Tensor | None,
    value: Tensor | None,
    window: int | Tensor,
    offset: bool,
    bounds: Tensor | None,
    gain: float,
) -> Tensor:
    """As the twin, but documents are told by their bounds, and the window may be a tensor."""
    rotary.check_shapes(qkv, cos, sin, opening, num_heads)
    windows = (window, 0) if isinstance(window, Tensor) else (None, window)
    rest = (opening, value, bounds, num_heads, offset, gain)
    out: Tensor = heads_forward(qkv, cos, sin, *rest, *windows)[0]
    return out


def as_tensor(window: int) -> int | Tensor:
    """How a block that is compiled by itself takes a window; compiled code keeps the number."""
    if torch.compiler.is_compiling():
        return window
    return torch.tensor(window, device="cpu")  # whatever the default device is


@torch.library.custom_op("autoresearch::heads_forward", mutates_args=(), tags=_TAGS)
def heads_forward(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    opening: Tensor | None,
    value: Tensor | None,
    bounds: Tensor | None,
    num_heads: int,
    offset: bool,
    gain: float,
    window: Tensor | None,
    known: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output, log-sum-exp, q, k, and mixed v (empty without a value embedding).

    The window is `known`, or in the tensor, which must not come first: Inductor takes the device of
    the first tensor for that of the operator.
    """
    has_value = value is not None
    q, k, v = rotary.launch_forward(
        qkv, cos, sin, opening, value, num_heads, offset, gain, writes_values=has_value
    )
    values = v if has_value else _values(qkv, k)
    out, lse = fa4.run(q, k, values, known if window is None else int(window), bounds)
    return out, lse, q, k, v


def _values(qkv: Tensor, k: Tensor) -> Tensor:
    """Where the values lie in the product, (B, T, G, D)."""
    G, D = k.shape[2:]
    return qkv[..., -G * D :].unflatten(-1, (G, D))


@heads_forward.register_fake
def _(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    opening: Tensor | None,
    value: Tensor | None,
    bounds: Tensor | None,
    num_heads: int,
    offset: bool,
    gain: float,
    window: Tensor | None,
    known: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, T, width = qkv.shape
    D = 2 * cos.size(-1)
    G = (width // D - num_heads) // 2
    q, k = qkv.new_empty(B, T, num_heads, D), qkv.new_empty(B, T, G, D)
    lse = qkv.new_empty((B, num_heads, T), dtype=torch.float32)
    v = qkv.new_empty((B, T, G, D) if value is not None else (0,))
    return qkv.new_empty(B, T, num_heads, D), lse, q, k, v


@torch.library.custom_op("autoresearch::heads_backward", mutates_args=(), tags=_TAGS)
def heads_backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    opening: Tensor | None,
    value: Tensor | None,
    bounds: Tensor | None,
    offset: bool,
    gain: float,
    window: Tensor | None,
    known: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv, opening and value; the last two are empty if there is no value."""
    dqkv = qkv.new_empty(qkv.shape)
    values = v if value is not None else _values(qkv, k)
    place = _values(dqkv, k)
    reach = known if window is None else int(window)
    as_sums = fa4.leaves_sums(q.device, q.size(3), q.size(1), reach, bounds is not None)
    given = (grad, q, k, values, out, lse, reach, bounds, place)
    dq, dk, _ = fa4.run_backward(*given, as_sums=as_sums)
    rest = (opening, value, offset, gain)
    extra = rotary.launch_backward(dq, dk, None, qkv, cos, sin, *rest, dqkv)
    return dqkv, *extra


@heads_backward.register_fake
def _(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    opening: Tensor | None,
    value: Tensor | None,
    bounds: Tensor | None,
    offset: bool,
    gain: float,
    window: Tensor | None,
    known: int,
) -> tuple[Tensor, Tensor, Tensor]:
    dopening = qkv.new_empty(opening.shape if opening is not None else (0,))
    dvalue = qkv.new_empty(value.shape if value is not None else (0,))
    return qkv.new_empty(qkv.shape), dopening, dvalue


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, ctx.offset, ctx.gain, window, ctx.known = inputs
    ctx.save_for_backward(*output, *tensors, window)
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    *kept, window = ctx.saved_tensors
    rest = (ctx.offset, ctx.gain, window, ctx.known)
    dqkv, dopening, dvalue = heads_backward(grad, *kept, *rest)
    extra = (dopening, dvalue) if kept[-2] is not None else (None, None)
    return dqkv, None, None, *extra, *(6 * [None])


heads_forward.register_autograd(_gradient, setup_context=_setup)


def try_out(device: torch.device, shape: Shape) -> None:
    """Both ways on a small input, in all forms that a model has; raises if not the twin's."""
    generator = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"device": device, "dtype": torch.bfloat16, "generator": generator}
    B, T, H, G, D = 1, 256, shape.num_heads, shape.kv_heads, shape.head_dim
    told: list[tuple[int, Tensor | None]] = []  # windows, and tokens by which documents are found
    if shape.reaches[-1] >= 0:
        told.append((T // 2, None))
    if shape.has_documents or not told:  # each token its own number: the hundredth begins one
        told.append((-1, torch.arange(T, device=device)[None] if shape.has_documents else None))
    angles = torch.randn((T, 1, D // 2), device=device, generator=generator)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()

    def attended(function: Any, find: Any, qkv: Tensor, *mix: Tensor) -> list[Tensor]:
        opening, value = mix or (None, None)
        turns = (cos.to(qkv.dtype), sin.to(qkv.dtype))
        return [
            function(
                *(qkv, *turns, H, opening, value, window, shape.has_offset),
                None if tokens is None else find(tokens, 100),
                1.5,
            )
            for window, tokens in told
        ]

    sizes = ((B, T, (H + 2 * G) * D), (B, T, G), (B, T, G * D))
    for has_value in shape.value_forms:
        inputs = [torch.randn(size, **options) for size in sizes[: 3 if has_value else 1]]
        grads = [torch.randn((B, T, H, D), **options) for _ in told]
        exact = [t.float() for t in inputs]
        fast = partial(attended, attend_heads, find_bounds)
        plain = partial(attended, attend_heads_twin, count_documents)
        results, wanted = both_ways(fast, inputs, grads), both_ways(plain, exact, grads)
        compare(zip(results, wanted, strict=True))
