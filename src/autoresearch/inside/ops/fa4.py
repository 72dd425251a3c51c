"""FlashAttention 4 as torch operators: its own autograd.Function cannot be traced.

q is (B, T, H, D), k and v (B, T, G, D), bounds as of documents.py or None. Window -1 sees all that
came before, with bounds no further back than the query's own document.

On Hopper the library sums up the gradient of queries in float32, in the order in which its threads
hold it, and another kernel narrows that and puts it in order. Where the next kernel reads the sums
themselves (kernels/rotary.py), that one is left out.
"""

from __future__ import annotations

import functools
import importlib
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from autoresearch.inside.ops.documents import find_bounds
from autoresearch.inside.ops.trial_call import normal

SUMS_VERSIONS = ("4.0.0b36",)  # of the library, whose sums lie as kernels/rotary.py reads them
SUMS_TOKENS, SUMS_HEAD_DIM = 64, 128  # of a tile of sums
_sums: list[Tensor] = []  # of the backward pass that was asked to leave them


def attend(q: Tensor, k: Tensor, v: Tensor, window: int, bounds: Tensor | None = None) -> Tensor:
    """FlashAttention 4; a window that reaches the first token is plain causal attention."""
    out: Tensor = fa4_forward(q, k, v, window, bounds)[0]
    return out


@torch.library.custom_op("autoresearch::fa4_forward", mutates_args=())
def fa4_forward(
    q: Tensor, k: Tensor, v: Tensor, window: int, bounds: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Output (B, T, H, D) and log-sum-exp (B, H, T); window -1 sees everything before."""
    return run(q, k, v, window, bounds)


def run(
    q: Tensor, k: Tensor, v: Tensor, window: int, bounds: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The library's forward; each head of q, k and v has its channels side by side.

    With bounds and window -1 it is told all rows as one, cut there; the log-sum-exp has the shape
    (B, H, T) then too, but another order.
    """
    interface = importlib.import_module("flash_attn.cute.interface")
    options: dict[str, Any] = {"causal": True, "return_lse": True}
    B, T, H, _ = q.shape
    if bounds is None or window >= 0:
        left = window if 0 <= window < T - 1 else None
        out, lse, *_ = interface._flash_attn_fwd(q, k, v, window_size_left=left, **options)
        return out, lse
    options |= _cut(bounds, T)
    out, lse, *_ = interface._flash_attn_fwd(*(x.flatten(0, 1) for x in (q, k, v)), **options)
    return out.unflatten(0, (B, T)), lse.view(B, H, T)


def _cut(bounds: Tensor, longest: int) -> dict[str, Any]:
    """How the library is told of documents."""
    ends = {"cu_seqlens_q": bounds, "cu_seqlens_k": bounds}
    return {**ends, "max_seqlen_q": longest, "max_seqlen_k": longest}


@fa4_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, window: int, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    B, T, H, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((B, H, T), dtype=torch.float32)


@torch.library.custom_op("autoresearch::fa4_backward", mutates_args=())
def fa4_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    window: int,
    bounds: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    return run_backward(grad, q, k, v, out, lse, window, bounds)


def run_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    window: int,
    bounds: Tensor | None = None,
    dv: Tensor | None = None,
    *,
    as_sums: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The library's backward.

    Args:
        grad: gradient of out.
        q, k, v, out, lse, window, bounds: given to and by `run`.
        dv: where the gradient of the values shall be written.
        as_sums: give the gradient of q as sums, float32 (B, H, T D); `leaves_sums` says where.
    """
    interface = importlib.import_module("flash_attn.cute.interface")
    given, options = (q, k, v, out, grad.contiguous()), {"causal": True, "dv": dv}
    B, T, H, _ = q.shape
    if bounds is None or window >= 0:
        options["window_size_left"] = window if 0 <= window < T - 1 else None
        if as_sums:
            options["dq"] = _postpone(interface, q)
        dq, dk, dv, *_ = interface._flash_attn_bwd(*given, lse, **options)
        return _sums.pop() if as_sums else dq, dk, dv
    options |= _cut(bounds, T) | {"dv": None if dv is None else dv.flatten(0, 1)}
    flat = (x.flatten(0, 1) for x in given)
    grads = interface._flash_attn_bwd(*flat, lse.view(H, B * T), **options)
    dq, dk, dv = (x.unflatten(0, (B, T)) for x in grads[:3])
    return dq, dk, dv


def leaves_sums(
    device: torch.device, head_dim: int, context: int, window: int, has_documents: bool
) -> bool:
    """Whether `run_backward` can give the gradient of queries as sums."""
    is_whole = head_dim == SUMS_HEAD_DIM and context % SUMS_TOKENS == 0
    return is_whole and (window >= 0 or not has_documents) and _has_known_sums(device)


@functools.cache
def _has_known_sums(device: torch.device) -> bool:
    try:
        version = metadata.version("flash-attn-4")
    except metadata.PackageNotFoundError:
        return False
    is_hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
    return is_hopper and version in SUMS_VERSIONS


def _postpone(interface: Any, q: Tensor) -> Tensor:
    """Stands for the gradient of q: what would be put in order there is left in `_sums` instead.

    All its rows are one, by which it is known again.
    """
    convert = interface._bwd_postprocess_convert
    if not hasattr(convert, "__wrapped__"):

        @functools.wraps(convert)  # with the attribute where it keeps what it compiled
        def convert_or_leave(sums: Tensor, output: Tensor, *rest: Any, **named: Any) -> None:
            if output.stride(-2):
                convert(sums, output, *rest, **named)
            else:
                _sums.append(sums)

        interface._bwd_postprocess_convert = convert_or_leave
    return q.new_empty(q.size(-1)).expand(q.shape)


def sample(device: torch.device, head_dim: int, context: int) -> Tensor:
    """One row of queries, keys and values, (3, 1, T, 2, D)."""
    return normal(device, (3, 1, context, 2, head_dim))[0]


def try_forward(
    device: torch.device, head_dim: int, context: int, window: int, has_documents: bool
) -> None:
    """FlashAttention 4 once, for what it compiles."""
    q, k, v = sample(device, head_dim, context)
    attend(q, k, v, window, _one_document(device, context) if has_documents else None)


def try_backward(
    device: torch.device, head_dim: int, context: int, window: int, has_documents: bool
) -> None:
    """Its way back, from a forward pass that nobody made."""
    q, k, v = sample(device, head_dim, context)
    lse = torch.zeros((1, 2, context), device=device)
    bounds = _one_document(device, context) if has_documents else None
    as_sums = leaves_sums(device, head_dim, context, window, has_documents)
    run_backward(q, q, k, v, q, lse, window, bounds, as_sums=as_sums)


def _one_document(device: torch.device, context: int) -> Tensor:
    return find_bounds(torch.arange(context, device=device)[None], context)


@fa4_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    window: int,
    bounds: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.window, bounds = inputs
    ctx.save_for_backward(q, k, v, *output, bounds)
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad: Tensor, _grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    *kept, bounds = ctx.saved_tensors
    return (*fa4_backward(grad, *kept, ctx.window, bounds), None, None)


fa4_forward.register_autograd(_gradient, setup_context=_setup)
