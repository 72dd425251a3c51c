"""Causal attention with a sliding window, by the best library on the machine.

The ladder, best first: FlashAttention 4 (Hopper, Blackwell), FlashAttention 3 through the `kernels`
package (Hopper; asks the Hugging Face hub), cuDNN where everything is seen and FlexAttention where
a window cuts, SDPA with a mask. All take q (B, T, H, D), k and v (B, T, G, D) and `window`, the
tokens that a query sees besides itself, and give (B, T, H, D). `attend_twin` is the definition.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoresearch.inside.ops.trial_call import compare, once

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]

FA3_REPOSITORY = "kernels-community/flash-attn3"
FA3_REVISION = "9542c462013476380ce4b395b9ddc0e8118161ee"


def attend_twin(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """The definition, with the whole matrix of scores, in the precision of its inputs."""
    T, H, G, D = q.size(1), q.size(2), k.size(2), q.size(3)
    k, v = k.repeat_interleave(H // G, dim=2), v.repeat_interleave(H // G, dim=2)
    back = torch.arange(T, device=q.device)[:, None] - torch.arange(T, device=q.device)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(D)
    scores = scores.masked_fill((back < 0) | (back > window), -math.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def choose(
    name: str, device: torch.device, head_dim: int, context: int, windows: Sequence[int]
) -> tuple[Attend | None, str]:
    """The rung called `name`, or for "auto" the first that works here; None stands for plain SDPA.

    A rung works if its library can be imported and a small forward pass agrees with the twin.
    """
    rungs: dict[str, Callable[[], Attend]] = {
        "fa4": lambda: _make_fa4(device),
        "fa3": lambda: _make_fa3(device),
        "flex": lambda: FlexAttend(context, windows, device, full=attend_cudnn),
        "cudnn": lambda: attend_cudnn_or_sdpa,
    }
    names = list(rungs) if name == "auto" else [name]
    if name == "auto" and not importlib.util.find_spec("kernels"):
        names.remove("fa3")
    reasons = []
    for rung in names:
        if rung not in rungs:
            break
        try:
            attend = rungs[rung]()
            what = f"{rung} {head_dim} {context} {sorted(set(windows))}"
            once(what, device, partial(_try, attend, device, head_dim, context, windows))
        except Exception as error:  # noqa: BLE001 - whatever a library throws, the next rung is tried
            reasons.append(f"{rung}: {type(error).__name__}: {error}".splitlines()[0][:120])
            continue
        return attend, _describe(rung, reasons)
    return None, _describe("sdpa", reasons)


def _describe(rung: str, reasons: list[str]) -> str:
    return f"{rung} ({'; '.join(reasons)})" if reasons else rung


@torch.no_grad()
def _try(
    attend: Attend, device: torch.device, head_dim: int, context: int, windows: Sequence[int]
) -> None:
    """A forward pass for every window; raises if the result is not the twin's."""
    q, k, v = _sample(device, head_dim, context)
    for window in sorted(set(windows)):
        wanted = attend_twin(q.float(), k.float(), v.float(), window)
        compare([(attend(q, k, v, window), wanted)], f"window {window}: ")


def _sample(device: torch.device, head_dim: int, context: int) -> Tensor:
    """One row of queries, keys and values, (3, 1, T, 2, D)."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (3, 1, context, 2, head_dim)
    return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)


# FlashAttention 4. Its autograd.Function cannot be traced: its two halves become operators of ours.


def _make_fa4(device: torch.device) -> Attend:
    if torch.cuda.get_device_capability(device)[0] not in (9, 10, 11):
        raise ImportError("needs Hopper or Blackwell")
    importlib.import_module("flash_attn.cute.interface")
    return attend_fa4


def attend_fa4(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """FlashAttention 4; a window that reaches the first token is plain causal attention."""
    out: Tensor = fa4_forward(q, k, v, window if window < q.size(1) - 1 else -1)[0]
    return out


@torch.library.custom_op("autoresearch::fa4_forward", mutates_args=())
def fa4_forward(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Output (B, T, H, D) and log-sum-exp (B, H, T); window -1 sees everything before."""
    return run_fa4(q, k, v, window)


def run_fa4(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The library's forward; each head of q, k and v has its channels side by side."""
    interface = importlib.import_module("flash_attn.cute.interface")
    left = None if window < 0 else window
    options = {"causal": True, "window_size_left": left, "return_lse": True}
    out, lse, *_ = interface._flash_attn_fwd(q, k, v, **options)
    return out, lse


@fa4_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    B, T, H, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((B, H, T), dtype=torch.float32)


@torch.library.custom_op("autoresearch::fa4_backward", mutates_args=())
def fa4_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    return run_fa4_backward(grad, q, k, v, out, lse, window)


def run_fa4_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    window: int,
    **places: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The library's backward; `places`: dq, dk or dv, where they shall be written."""
    interface = importlib.import_module("flash_attn.cute.interface")
    left = None if window < 0 else window
    grad = grad.contiguous()
    dq, dk, dv, *_ = interface._flash_attn_bwd(
        q, k, v, out, grad, lse, None, True, 0.0, window_size_left=left, **places
    )
    return dq, dk, dv


def try_forward(device: torch.device, head_dim: int, context: int, window: int) -> None:
    """FlashAttention 4 once, for what it compiles."""
    q, k, v = _sample(device, head_dim, context)
    attend_fa4(q, k, v, window)


def try_backward(device: torch.device, head_dim: int, context: int, window: int) -> None:
    """Its way back, from a forward pass that nobody made."""
    q, k, v = _sample(device, head_dim, context)
    lse = torch.zeros((1, 2, context), device=device)
    run_fa4_backward(q, q, k, v, q, lse, window if window < context - 1 else -1)


@fa4_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _fa4_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.window = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.set_materialize_grads(False)


def _fa4_gradient(ctx: Any, grad: Tensor, _grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*fa4_backward(grad, *ctx.saved_tensors, ctx.window), None)


fa4_forward.register_autograd(_fa4_gradient, setup_context=_fa4_setup)


# The other rungs


def _make_fa3(device: torch.device) -> Attend:
    if torch.cuda.get_device_capability(device)[0] != 9:
        raise ImportError("needs Hopper")
    kernel = importlib.import_module("kernels").get_kernel(FA3_REPOSITORY, revision=FA3_REVISION)
    interface = kernel.flash_attn_interface

    def attend_fa3(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        out = interface.flash_attn_func(q, k, v, causal=True, window_size=(window, 0))
        return out if isinstance(out, Tensor) else out[0]

    return attend_fa3


def attend_cudnn(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """cuDNN's fused attention, for windows that see everything."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if window < q.size(1) - 1:
        raise ValueError(f"cuDNN's causal attention has no window, got {window}; use another rung")
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=k.size(1) < q.size(1)
        )
    return out.transpose(1, 2)


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """torch's own choice, with a mask if there is a window."""
    T = q.size(1)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    is_shared = k.size(1) < q.size(1)
    if window >= T - 1:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=is_shared)
    else:
        back = torch.arange(T, device=q.device)[:, None] - torch.arange(T, device=q.device)
        mask = (back >= 0) & (back <= window)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=is_shared)
    return out.transpose(1, 2)


def attend_cudnn_or_sdpa(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """cuDNN where it can, torch's choice with a mask elsewhere."""
    return (attend_cudnn if window >= q.size(1) - 1 else attend_sdpa)(q, k, v, window)


class FlexAttend:
    """FlexAttention with its block masks made ahead, as compiled code needs them.

    Rows of another length than `context` go to SDPA.
    """

    def __init__(
        self,
        context: int,
        windows: Sequence[int],
        device: torch.device,
        full: Attend | None = None,
    ) -> None:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        self._full = full
        is_cuda = device.type == "cuda"
        self._flex = torch.compile(flex_attention, dynamic=False) if is_cuda else flex_attention
        self._masks = {
            window: create_block_mask(
                _window_rule(window), None, None, context, context, device=device
            )
            for window in set(windows)
            if full is None or window < context - 1
        }
        self._context = context

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        """As the other rungs."""
        if self._full is not None and window >= q.size(1) - 1:
            return self._full(q, k, v, window)
        if q.size(1) != self._context:
            return attend_sdpa(q, k, v, window)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        mask = self._masks[window]
        out: Tensor = self._flex(q, k, v, block_mask=mask, enable_gqa=k.size(1) < q.size(1))
        return out.transpose(1, 2)


def _window_rule(window: int) -> Callable[..., Tensor]:
    def is_seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key <= window)

    return is_seen
