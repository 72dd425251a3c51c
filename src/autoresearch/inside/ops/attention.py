"""Causal attention with a sliding window, by the best library on the machine.

The ladder, best first: FlashAttention 4 (Hopper, Blackwell), FlashAttention 3 through the `kernels`
package (Hopper; asks the Hugging Face hub), cuDNN where everything is seen and FlexAttention where
a window cuts, SDPA with a mask. All take q (B, T, H, D), k and v (B, T, G, D) and `window`, the
tokens that a query sees besides itself, -1 for all before, and give (B, T, H, D). With `documents`
and -1 a query keeps to its own document; each rung is told of them in its own way, which `finder`
gives, and those that cannot tell them apart leave that to SDPA. `attend_twin` is the definition.
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

from autoresearch.inside.ops import fa4
from autoresearch.inside.ops.documents import count_documents, find_bounds
from autoresearch.inside.ops.trial_call import both_ways, compare, once

Attend = Callable[..., Tensor]  # q, k, v, window and, if wanted, documents
Find = Callable[[Tensor, int], Any]  # tokens (B, T) and the one that begins a document

BLOCK = 128  # tokens that FlexAttention decides about at once

FA3_REPOSITORY = "kernels-community/flash-attn3"
FA3_REVISION = "9542c462013476380ce4b395b9ddc0e8118161ee"


def visible(T: int, window: int, documents: Tensor | None, device: torch.device) -> Tensor:
    """Which keys (last) a query (last but one) sees: (T, T), or (B, 1, T, T) by documents."""
    back = torch.arange(T, device=device)[:, None] - torch.arange(T, device=device)
    seen = (back >= 0) & (back <= (T if window < 0 else window))
    if documents is None or window >= 0:
        return seen
    return seen & (documents[:, None, :, None] == documents[:, None, None])


def attend_twin(
    q: Tensor, k: Tensor, v: Tensor, window: int, documents: Tensor | None = None
) -> Tensor:
    """The definition, with the whole matrix of scores, in the precision of its inputs.

    Args:
        q: (B, T, H, D).
        k: (B, T, G, D).
        v: likewise.
        window: how many tokens before its own a query sees; -1: all.
        documents: (B, T) as of count_documents, or None.
    """
    T, H, G, D = q.size(1), q.size(2), k.size(2), q.size(3)
    k, v = k.repeat_interleave(H // G, dim=2), v.repeat_interleave(H // G, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(D)
    scores = scores.masked_fill(~visible(T, window, documents, q.device), -math.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def choose(
    name: str,
    device: torch.device,
    head_dim: int,
    context: int,
    windows: Sequence[int],
    has_documents: bool = False,
) -> tuple[Attend | None, str]:
    """The rung called `name`, or for "auto" the first that works here; None stands for plain SDPA.

    A rung works if its library can be imported and calls on a small input agree with the twin.
    """
    sizes = (device, head_dim, context, sorted(set(windows)))
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
            trial = partial(_try, attend, finder(attend) if has_documents else None, *sizes)
            once(f"{rung} {sizes[1:]} {has_documents}", device, trial)
        except Exception as error:  # noqa: BLE001 - whatever a library throws, the next rung is tried
            reasons.append(f"{rung}: {type(error).__name__}: {error}".splitlines()[0][:120])
            continue
        return attend, _describe(rung, reasons)
    return None, _describe("sdpa", reasons)


def _describe(rung: str, reasons: list[str]) -> str:
    return f"{rung} ({'; '.join(reasons)})" if reasons else rung


def finder(attend: Attend) -> Find:
    """How a rung is told of documents."""
    if attend is fa4.attend:
        return find_bounds
    find: Find = getattr(attend, "find_documents", count_documents)
    return find


def _try(
    attend: Attend,
    find: Find | None,
    device: torch.device,
    head_dim: int,
    context: int,
    windows: Sequence[int],
) -> None:
    """A forward pass for every window, by documents both ways; raises if not the twin's."""
    q, k, v = inputs = fa4.sample(device, head_dim, context)
    exact = inputs.float()
    with torch.no_grad():
        for window in windows:
            if find is None or window < context - 1:
                wanted = attend_twin(exact[0], exact[1], exact[2], window)
                compare([(attend(q, k, v, window), wanted)], f"window {window}: ")
    if find is not None:
        tokens = torch.arange(context, device=device)[None]  # the hundredth begins a document
        told, documents = find(tokens, 100), count_documents(tokens, 100)
        results = both_ways(lambda *t: [attend(*t, -1, told)], inputs, [q])
        wants = both_ways(lambda q, k, v: [attend_twin(q, k, v, -1, documents)], exact, [q.float()])
        compare(zip(results, wants, strict=True), "documents: ")


# The rungs


def _make_fa4(device: torch.device) -> Attend:
    if torch.cuda.get_device_capability(device)[0] not in (9, 10, 11):
        raise ImportError("needs Hopper or Blackwell")
    importlib.import_module("flash_attn.cute.interface")
    return fa4.attend


def _make_fa3(device: torch.device) -> Attend:
    if torch.cuda.get_device_capability(device)[0] != 9:
        raise ImportError("needs Hopper")
    kernel = importlib.import_module("kernels").get_kernel(FA3_REPOSITORY, revision=FA3_REVISION)
    interface = kernel.flash_attn_interface

    def attend_fa3(
        q: Tensor, k: Tensor, v: Tensor, window: int, documents: Tensor | None = None
    ) -> Tensor:
        if documents is not None and window < 0:
            return attend_sdpa(q, k, v, window, documents)
        out = interface.flash_attn_func(q, k, v, causal=True, window_size=(window, 0))
        return out if isinstance(out, Tensor) else out[0]

    return attend_fa3


def _sees_all(T: int, window: int, documents: Tensor | None) -> bool:
    """Whether nothing that came before is hidden."""
    return window >= T - 1 or (window < 0 and documents is None)


def attend_cudnn(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """cuDNN's fused attention, for windows that see everything."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if not _sees_all(q.size(1), window, None):
        raise ValueError(f"cuDNN's causal attention has no window, got {window}; use another rung")
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=k.size(1) < q.size(1)
        )
    return out.transpose(1, 2)


def attend_sdpa(
    q: Tensor, k: Tensor, v: Tensor, window: int, documents: Tensor | None = None
) -> Tensor:
    """torch's own choice, with a mask if there is a window or documents are told."""
    T = q.size(1)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    is_shared = k.size(1) < q.size(1)
    if _sees_all(T, window, documents):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=is_shared)
    else:
        mask = visible(T, window, documents, q.device)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=is_shared)
    return out.transpose(1, 2)


def attend_cudnn_or_sdpa(
    q: Tensor, k: Tensor, v: Tensor, window: int, documents: Tensor | None = None
) -> Tensor:
    """cuDNN where it can, torch's choice with a mask elsewhere."""
    if _sees_all(q.size(1), window, documents):
        return attend_cudnn(q, k, v, window)
    return attend_sdpa(q, k, v, window, documents)


class FlexAttend:
    """FlexAttention with its block masks made ahead, as compiled code needs them.

    Documents are told as a mask made for them. Rows of another length than `context` go to SDPA.
    """

    def __init__(
        self,
        context: int,
        windows: Sequence[int],
        device: torch.device,
        full: Attend | None = None,
    ) -> None:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        self._full, self._context = full, context
        is_cuda = device.type == "cuda"
        self._flex = torch.compile(flex_attention, dynamic=False) if is_cuda else flex_attention
        self._masks = {
            reach: create_block_mask(
                _window_rule(reach), None, None, context, context, device=device
            )
            for reach in {self._reach(window) for window in windows}
            if full is None or reach < context
        }

    def _reach(self, window: int) -> int:
        """The window as masks are kept: one number for all that see everything."""
        return self._context if _sees_all(self._context, window, None) else window

    def find_documents(self, tokens: Tensor, bos: int) -> Any:
        """A mask: blocks of keys that a block of queries needs, and what is seen within them."""
        from torch.nn.attention.flex_attention import BlockMask

        documents = count_documents(tokens, bos)
        if tokens.size(1) != self._context or self._context % BLOCK:
            return documents
        blocks = documents.unflatten(1, (-1, BLOCK))
        needed = (blocks[:, None, :, -1] >= blocks[:, :, None, 0]).tril()
        first = needed.int().argsort(dim=-1, descending=True, stable=True).int()
        counts = needed.sum(-1, dtype=torch.int32)
        rule = _document_rule(documents)
        return BlockMask.from_kv_blocks(counts[:, None], first[:, None], None, None, BLOCK, rule)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, window: int, documents: Any = None
    ) -> Tensor:
        """As the other rungs."""
        told = documents if window < 0 else None
        if q.size(1) != self._context or isinstance(told, Tensor):
            return attend_sdpa(q, k, v, window, told)
        reach = self._reach(window)
        if reach == self._context and self._full is not None and told is None:
            return self._full(q, k, v, window)
        # Inductor's kernel for CPUs reads values that lie in a larger product wrongly (torch 2.13)
        q, k, v = (x.contiguous().transpose(1, 2) for x in (q, k, v))
        mask = self._masks[reach] if told is None else told
        out: Tensor = self._flex(q, k, v, block_mask=mask, enable_gqa=k.size(1) < q.size(1))
        return out.transpose(1, 2)


def _window_rule(window: int) -> Callable[..., Tensor]:
    def is_seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key <= window)

    return is_seen


def _document_rule(documents: Tensor) -> Callable[..., Tensor]:
    def is_seen(batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents[batch, query] == documents[batch, key])

    return is_seen
