"""Products in bfloat16 and float8, attention by two libraries and by documents, a second each.

Usage: python runs/gpu_bench.py --sections sustained (this file is not called by itself)

Hardware: one NVIDIA H100 80GB; duration: a minute. In training that card stands at its power cap
and below its highest clock, which short bursts do not show: so each call is repeated for a second
before it is timed for another. Shapes are those of preset h100. FlashAttention
3 is looked for as the package `flash_attn_3`, or at the path in FA3_LIBRARY (a build with torch's
stable ABI).
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gpu_meter as meter
import torch

from autoresearch.inside.ops import float8
from autoresearch.inside.ops.linear import load_gemm

N, C, T, H, D = 2**17, 768, 2048, 6, 128
PRODUCTS = {  # name: output columns, summed over
    "queries, keys, values": (3 * C, C),
    "out": (C, C),
    "up": (4 * C, C),
    "down": (C, 4 * C),
    "head": (16_384, C),
    "back through the head": (C, 16_384),
}


def section_sustained() -> None:
    """One line each: milliseconds, floor, rate."""
    meter.say(f"{'sustained':44s} {'ms':>8s} {'floor':>8s} {'x floor':>8s}   TFLOP/s")
    for name, (columns, depth) in PRODUCTS.items():
        meter.attempt(name, partial(products, name, columns, depth))
    for window in (256, 1024, T):
        meter.attempt(f"documents {window}", partial(documents, window))
        meter.attempt(f"attention {window}", partial(attention, window))


def sustained_ms(function: Callable[[], object], seconds: float = 1.0) -> float:
    """Mean time of a call after a second of nothing else."""
    for _ in range(2):
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for _ in range(16):
                function()
            torch.cuda.synchronize()
            count += 16
        spent_s = time.perf_counter() - began
    return 1e3 * spent_s / count


def products(name: str, columns: int, depth: int) -> None:
    """x (N, depth) times weights (columns, depth), with what it takes to narrow x."""
    x, weights = meter.normal(N, depth).detach(), meter.normal(columns, depth).detach()
    flops, moved = 2 * N * columns * depth, 2 * N * (columns + depth)
    meter.row(f"{name} bfloat16", sustained_ms(lambda: x @ weights.mT), flops, moved)
    small = float8.narrow(x, 1.0), float8.narrow(weights, float8.WEIGHT_FACTOR).mT
    scales = (torch.tensor(s, device="cuda") for s in (1.0, 1 / float8.WEIGHT_FACTOR))
    options: dict[str, Any] = {"out_dtype": torch.bfloat16, "use_fast_accum": True}
    ways = {
        "float8 by cuBLAS": partial(torch._scaled_mm, *small, *scales, **options),
        "float8 by quack": partial(load_gemm().product_of_float8, *small, float8.TILES),
    }
    for way, multiply in ways.items():
        meter.say(f"  {way} off by {meter.off(multiply(), x @ weights.mT):.3g}")
        meter.row(f"{name} {way}", sustained_ms(multiply), flops, moved)
    meter.row(f"{name} narrowing", sustained_ms(lambda: float8.narrow(x, 1.0)), 0, 3 * N * depth)


def attention(window: int) -> None:
    """Forward and backward, FlashAttention 4 beside 3."""
    from autoresearch.inside.ops import fa4

    q, k, v, grad = (meter.normal(N // T, T, H, D).detach() for _ in range(4))
    keys = sum(min(t, window) + 1 for t in range(T)) / T
    flops, moved = 4 * N * H * D * keys, 8 * q.numel()
    left = window if window < T - 1 else -1
    results = {}
    for name, find in (("4", lambda: (fa4.run, fa4.run_backward)), ("3", fa3)):
        forward, backward = find()
        out, lse = forward(q, k, v, left)
        results[name] = (out, *backward(grad, q, k, v, out, lse, left))
        ms = sustained_ms(partial(forward, q, k, v, left))
        meter.row(f"FlashAttention {name}, window {window}, forward", ms, flops, moved)
        ms = sustained_ms(partial(backward, grad, q, k, v, out, lse, left))
        meter.row(f"FlashAttention {name}, window {window}, backward", ms, 2.5 * flops, 2 * moved)
    meter.check(
        f"3 like 4, window {window}", list(zip(results["3"], results["4"], strict=True)), 1e-2
    )


def documents(window: int) -> None:
    """FlashAttention 4 where a token sees its own document alone: 1,080 tokens on average."""
    interface = importlib.import_module("flash_attn.cute.interface")
    q, k, v, grad = (meter.normal(N, H, D).detach() for _ in range(4))
    generator = torch.Generator().manual_seed(0)
    lengths = 100 - 980 * torch.rand(4 * N // T * 4, generator=generator).log()
    ends = torch.cat([lengths.cumsum(0).long(), torch.arange(0, N + 1, T)]).unique()
    ends = ends[ends <= N]
    left = window if window < T - 1 else None
    for num in (len(ends), 8 * N // T):  # as many as there are, and a number that compiles
        ends = torch.cat([ends, ends.new_full((max(0, num - len(ends)),), N)])
        bounds = ends.int().cuda()
        seen = {"cu_seqlens_q": bounds, "cu_seqlens_k": bounds, "window_size_left": left}
        seen |= {"max_seqlen_q": T, "max_seqlen_k": T, "causal": True}
        forward = partial(interface._flash_attn_fwd, q, k, v, return_lse=True, **seen)
        out, lse, *_ = forward()
        backward = partial(interface._flash_attn_bwd, q, k, v, out, grad, lse, **seen)
        name = f"{len(ends) - 1} documents, window {window}"
        meter.row(f"{name}, forward", sustained_ms(forward), 0, 8 * q.numel())
        meter.row(f"{name}, backward", sustained_ms(backward), 0, 16 * q.numel())


def fa3() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward of FlashAttention 3, in the form of those of 4."""
    path = os.environ.get("FA3_LIBRARY")
    if path:
        torch.ops.load_library(path)
    else:
        importlib.import_module("flash_attn_3._C")
    library = torch.ops.flash_attn_3

    def forward(q: Any, k: Any, v: Any, window: int) -> Any:
        options = {"is_causal": window < 0, "window_size_left": window}
        return library.fwd(q, k, v, **options, window_size_right=-1 if window < 0 else 0)[:2]

    def backward(grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, window: int) -> Any:
        options = {"is_causal": window < 0, "window_size_left": window}
        options["window_size_right"] = -1 if window < 0 else 0
        return library.bwd(grad, q, k, v, out, lse, **options)[:3]

    return forward, backward
