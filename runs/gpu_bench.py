"""Operators and the training step on one GPU: correctness, times against twin and roofline.

Usage: python runs/gpu_bench.py [--rows FOLDER] [--sections env,check,time,reference,h100]
           [--seconds 30] [--steps N] [--seeds 1] [--score] [--set NAME=VALUE ...]
           [--ops MODULE.NAME=VALUE ...] [--out FILE]

Hardware: one NVIDIA H100 80GB (on others, read the ceilings that `env` measures). Duration: about
two minutes for check and time; --seconds plus compilation (half a minute to one and a half) for a
training section. FOLDER comes from gpu_rows.py; without it training runs on random tokens, which
is as fast. Optional packages (FlashAttention 4, quack) are used where they can be imported. What
fails is printed, and the next thing follows.

More sections: `leads` (checks and times of what might be faster; a minute and a half), `tune` (what
quack's own search over tile shapes gives; minutes), and any preset of templates/presets.toml, which
is trained. --ops sets constants of the modules in inside/ops, for one run: residual.ENABLED=False.
 --steps ends a run after that many steps instead (926 at
`reference`, with --score, is the parity check: rows packed the reference's way are scored too).
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import importlib
import importlib.util
import json
import math
import re
import statistics
import sys
import time
import tomllib
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
TEMPLATES = ROOT / "src" / "autoresearch" / "templates"
PEAK, BANDWIDTH = 989.5e12, 3.0e12  # FLOP/s by the data sheet, bytes/s as measured by copying
CUDA = torch.device("cuda")
RESULTS: dict[str, Any] = {}

# ---------------------------------------------------------------------------------------------
# Small helpers


def say(*words: object) -> None:
    """Print at once: the run may be cut."""
    print(*words, flush=True)


def median_ms(function: Callable[[], object], budget_ms: float = 60.0) -> float:
    """Median time by CUDA events, after warm-up."""
    function()
    function()
    torch.cuda.synchronize()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - started) * 1e3 < budget_ms:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def attempt(what: str, function: Callable[[], object]) -> object:
    """Run it; an error is printed, short, and the next thing follows."""
    try:
        return function()
    except Exception as error:  # noqa: BLE001 - the next section must run
        lines = traceback.format_exc().strip().splitlines()
        say(f"FAILED {what}: {type(error).__name__}: {str(error)[:600]}")
        say("   ", " | ".join(line.strip() for line in lines[-5:-1])[:300])
        return None
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def off(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative error in norm; NaN stays NaN."""
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def check(name: str, pairs: list[tuple[torch.Tensor, torch.Tensor]], bound: float) -> None:
    """Print the errors of some results, and whether all are under the bound."""
    errors = [off(got, wanted) for got, wanted in pairs]
    verdict = "ok  " if all(error < bound for error in errors) else "WRONG"
    RESULTS.setdefault("check", {})[name] = errors
    say(f"{verdict} {name:46s} {' '.join(f'{e:.2e}' for e in errors)}  bound {bound:.0e}")


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers on the device that want a gradient."""
    values = torch.randn(shape, device=CUDA) * scale
    return values.to(dtype).requires_grad_()


def doubled(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Copies in float64 that want a gradient of their own."""
    return [t.detach().double().requires_grad_() for t in tensors]


# ---------------------------------------------------------------------------------------------
# Environment and ceilings


def section_env() -> None:
    """Versions, clocks, and what the card does at best."""
    major, minor = torch.cuda.get_device_capability()
    say(torch.__version__, torch.cuda.get_device_name(), f"sm_{major}{minor}")
    for name in ("triton", "flash_attn", "quack", "cutlass", "kernels", "einops"):
        spec = importlib.util.find_spec(name)
        say(f"  {name}: {spec.origin if spec else 'missing'}")
    a = torch.randn(2**30, device=CUDA, dtype=torch.bfloat16)
    b = torch.empty_like(a)
    copied = 4 * a.numel() / median_ms(lambda: b.copy_(a)) * 1e3
    x = torch.randn(8192, 8192, device=CUDA, dtype=torch.bfloat16)
    product = 2 * 8192**3 / median_ms(lambda: x @ x) * 1e3
    say(f"copy {copied / 1e12:.2f} TB/s, 8192^3 matmul {product / 1e12:.0f} TFLOP/s")
    RESULTS["ceilings"] = {"copy": copied, "matmul": product}


# ---------------------------------------------------------------------------------------------
# Correctness, forward and backward, against float64


def section_check() -> None:
    """Every operator on fresh random inputs and odd shapes."""
    torch.manual_seed(time.time_ns() % 2**31)
    attempt("attention", check_attention)
    attempt("split heads", check_split_heads)
    attempt("head loss", check_head_loss)
    for backend in ("quack", "triton"):
        attempt(f"mlp {backend}", lambda backend=backend: check_mlp(backend))
    attempt("lookup", check_lookup)
    attempt("polar", check_polar)


def attention_rungs(context: int, windows: list[int]) -> dict[str, Callable[[], Any]]:
    """Makers of every rung."""
    from autoresearch.inside.ops import attention

    return {
        "fa4": lambda: attention._make_fa4(CUDA),
        "flex": lambda: attention.FlexAttend(context, windows, CUDA),
        "cudnn": lambda: attention.attend_cudnn_or_sdpa,
        "sdpa": lambda: attention.attend_sdpa,
    }


def check_attention() -> None:
    """The two best rungs with and without a window, compiled for FA4; tests/gpu has all cases."""
    from autoresearch.inside.ops.attention import attend_twin

    for T, H, G, D, names in ((512, 4, 4, 128, ("fa4",)), (384, 6, 2, 64, ("fa4", "flex"))):
        windows = [T, 100] if G == H else [100]
        rungs = attention_rungs(T, windows)
        for name in names:
            make = rungs[name]

            def one(name: str = name, make: Any = make, T=T, H=H, G=G, D=D, ws=windows) -> None:
                attend = make()
                variants = {"": attend}
                if name == "fa4" and len(ws) > 1:
                    variants[" compiled"] = torch.compile(attend, dynamic=False, fullgraph=True)
                for window in ws:
                    for label, function in variants.items():
                        q, k, v = normal(2, T, H, D), normal(2, T, G, D), normal(2, T, G, D)
                        grad = normal(2, T, H, D)
                        exact = doubled(q, k, v)
                        wanted = attend_twin(*exact, window)
                        out = function(q, k, v, window)
                        pairs = [(out, wanted)]
                        got = torch.autograd.grad(out, (q, k, v), grad)
                        pairs += zip(
                            got, torch.autograd.grad(wanted, exact, grad.double()), strict=True
                        )
                        check(f"{name}{label} T{T} H{H} G{G} D{D} w{window}", pairs, 1e-2)

            attempt(f"attention {name}", one)


def check_split_heads() -> None:
    """Queries, keys, values and all gradients, with and without a value embedding; compiled too."""
    from autoresearch.inside.ops import rotary

    compiled = torch.compile(rotary.split_heads, dynamic=False, fullgraph=True)
    for B, T, H, G, D, has_value in ((3, 333, 4, 4, 128, True), (2, 500, 6, 2, 64, False)):
        angles = torch.randn(T, 1, D // 2, device=CUDA)
        turns = [angles.cos().bfloat16(), angles.sin().bfloat16()]
        shapes = ((B, T, (H + 2 * G) * D), (B, T, G), (B, T, G * D))
        inputs = [normal(*shape) for shape in shapes[: 3 if has_value else 1]]
        exact, empty = doubled(*inputs), [] if has_value else [None, None]
        arguments = (inputs[0], *turns, H, *inputs[1:], *empty, 1.2)
        doubles = (t.double() for t in turns)
        wanted = rotary.split_heads_twin(exact[0], *doubles, H, *exact[1:], *empty, 1.2)
        grads = [normal(*out.shape) for out in wanted]
        goals = torch.autograd.grad(wanted, exact, [g.double() for g in grads])
        for label, function in (("", rotary.split_heads), (" compiled", compiled)):
            outs = function(*arguments)
            got = torch.autograd.grad(outs, inputs, grads)
            name = f"split heads{label} T{T} H{H} G{G} D{D}{' value' if has_value else ''}"
            check(name, list(zip((*outs, *got), (*wanted, *goals), strict=True)), 1e-2)


def check_head_loss() -> None:
    """Loss, and gradients of hidden states and head."""
    from autoresearch.inside.ops.softcap_ce import head_loss, head_loss_twin

    for N, C, V in ((1000, 512, 8192), (70000, 64, 1021)):
        x, head = normal(N, C), normal(V, C, dtype=torch.float32, scale=0.2)
        targets = torch.randint(0, V, (N,), device=CUDA)
        exact = doubled(x, head)
        wanted = head_loss_twin(*exact, targets, 15.0)
        loss = head_loss(x, head, targets, 15.0)
        got = torch.autograd.grad(loss, (x, head))
        pairs = [(loss, wanted), *zip(got, torch.autograd.grad(wanted, exact), strict=True)]
        check(f"head loss N{N} C{C} V{V}", pairs, 2e-2)


def check_mlp(backend: str) -> None:
    """Output and three gradients."""
    from autoresearch.inside.ops.mlp import relu2_mlp, relu2_mlp_twin

    for N, C in ((4096, 512), (1000, 640), (333, 128)):
        x, fc = normal(1, N, C), normal(4 * C, C, scale=C**-0.5)
        proj, grad = normal(C, 4 * C, scale=C**-0.5), normal(1, N, C)
        exact = doubled(x, fc, proj)
        wanted = relu2_mlp_twin(*exact)
        out = relu2_mlp(x, fc, proj, backend)
        got = torch.autograd.grad(out, (x, fc, proj), grad)
        pairs = [(out, wanted)]
        pairs += zip(got, torch.autograd.grad(wanted, exact, grad.double()), strict=True)
        check(f"mlp {backend} N{N} C{C}", pairs, 1e-2)


def check_lookup() -> None:
    """Gradients of all tables, tokens distributed as in text and all alike."""
    from autoresearch.inside.ops.table import lookup, lookup_twin

    zipf = 1 / torch.arange(1, 1001, device=CUDA).float()
    for label, tokens in (
        ("zipf", torch.multinomial(zipf, 64 * 255, replacement=True).view(64, 255)),
        ("one", torch.full((3, 777), 5, device=CUDA)),
    ):
        embedding, values = normal(1000, 200), normal(3, 1000, 96)
        exact = doubled(embedding, values)
        wanted, got = lookup_twin(tokens, *exact), lookup(tokens, embedding, values)
        grads = [normal(*t.shape) for t in (got[0], *got[1])]
        outs, goals = [got[0], *got[1]], [wanted[0], *wanted[1]]
        a = torch.autograd.grad(outs, (embedding, values), grads)
        b = torch.autograd.grad(goals, exact, [g.double() for g in grads])
        check(f"lookup {label}", list(zip((*outs, *a), (*goals, *b), strict=True)), 5e-3)


def check_polar() -> None:
    """Banks of square, tall and wide matrices."""
    from autoresearch.inside.ops import polar

    coefficients = load_train({}).POLAR_COEFFICIENTS
    for shape in ((8, 512, 512), (3, 2048, 512), (3, 512, 2048)):
        matrices = torch.randn(shape, device=CUDA)
        wanted = polar.polar_twin(matrices.double(), coefficients)
        for function in (polar.polar, polar.polar_symmetric):
            name = f"{function.__name__} {shape}"
            attempt(
                name,
                lambda f=function, n=name, m=matrices, w=wanted: check(
                    n, [(f(m, coefficients, torch.bfloat16), w)], 5e-2
                ),
            )


# ---------------------------------------------------------------------------------------------
# Times against twin and roofline


def section_time() -> None:
    """Forward and backward of each operator at the reference's micro-batch."""
    say(f"{'operator':44s} {'ms':>8s} {'floor':>8s} {'x floor':>8s}   TFLOP/s")
    attempt("time attention", time_attention)
    attempt("time mlp", time_mlp)
    attempt("time head loss", time_head_loss)
    attempt("time lookup", time_lookup)
    attempt("time rotary", time_rotary)
    attempt("time polar", time_polar)


def row(name: str, ms: float, flops: float, moved: float) -> None:
    """One line: time, and the larger of arithmetic at 798 TFLOP/s and bytes at 3.0 TB/s."""
    floor = max(flops / 798e12, moved / BANDWIDTH) * 1e3
    RESULTS.setdefault("time", {})[name] = {"ms": ms, "floor_ms": floor}
    rate = f"{flops / ms / 1e9:.0f}" if flops else ""
    say(f"{name:44s} {ms:8.3f} {floor:8.3f} {ms / floor:8.2f}   {rate}")


def forward_backward(out: Callable[[], torch.Tensor], inputs: Any, grad: Any) -> Callable[[], Any]:
    """A function that does both."""
    return lambda: torch.autograd.grad(out(), inputs, grad)


def time_attention() -> None:
    """B=64 T=2048 H=4 D=128, windows of the two presets."""
    B, T, H, D = 64, 2048, 4, 128
    q, k, v, grad = (normal(B, T, H, D) for _ in range(4))
    windows = [T, T // 2, T // 8]
    for name, make in attention_rungs(T, windows).items():
        if name == "sdpa":
            continue

        def one(name: str = name, make: Any = make) -> None:
            attend = make()
            for window in windows:
                if name == "cudnn" and window < T:
                    continue
                keys = sum(min(t, window) + 1 for t in range(T)) / T
                flops = 4 * B * T * H * D * keys
                moved = 4 * q.numel() * 2
                with torch.no_grad():
                    ms = median_ms(lambda w=window: attend(q, k, v, w))
                row(f"{name} window {window} forward", ms, flops, moved)
                both = forward_backward(lambda w=window: attend(q, k, v, w), (q, k, v), grad)
                row(f"{name} window {window} both", median_ms(both), 3.5 * flops, 3 * moved)

        attempt(name, one)


def time_mlp() -> None:
    """N=262144 rows at the widths of the two presets."""
    for width in (512, 640):
        attempt(f"time mlp C{width}", lambda width=width: time_mlp_at(2**18, width))


def time_mlp_at(N: int, C: int) -> None:
    """Halves and whole, each backend and the compiled twin; then tile shapes for Triton."""
    from autoresearch.inside.ops import mlp

    x, fc, proj, grad = normal(N, C), normal(4 * C, C), normal(C, 4 * C), normal(N, C)
    squares = torch.rand(N, 4 * C, device=CUDA, dtype=torch.bfloat16)
    up, narrow, wide = 8.0 * N * C * C, 2 * N * C, 8 * N * C  # FLOPs; bytes of a tensor
    twin = torch.compile(mlp.relu2_mlp_twin, dynamic=False)

    def one(name: str) -> None:
        if name == "twin compiled":
            both = forward_backward(lambda: twin(x, fc, proj), (x, fc, proj), grad)
        else:
            with torch.no_grad():
                ms = median_ms(lambda: mlp._up(x, fc, name))
                row(f"mlp {name} C{C} up", ms, up, narrow + wide)
                ms = median_ms(lambda: mlp._down_gradient(grad, proj, squares, name))
                row(f"mlp {name} C{C} down gradient", ms, up, narrow + 2 * wide)
            fast = lambda: mlp.relu2_mlp(x, fc, proj, name)  # noqa: E731
            both = forward_backward(fast, (x, fc, proj), grad)
        row(f"mlp {name} C{C} both", median_ms(both), 6 * up, 8 * narrow + 7 * wide)

    for name in ("quack", "triton", "twin compiled"):
        attempt(f"mlp {name}", lambda name=name: one(name))
    with torch.no_grad():
        row(f"cuBLAS C{C} up alone", median_ms(lambda: F.linear(x, fc)), up, narrow + wide)
        for tiles in ((128, 256, 64, 3, 8), (128, 128, 64, 4, 8), (256, 128, 64, 3, 8)):
            for kept in (None, squares):
                label = f"triton {tiles} C{C} {'up' if kept is None else 'down gradient'}"
                attempt(label, lambda a=tiles, k=kept, n=label: time_tiles(n, x, fc, k, a, up))


def section_leads() -> None:
    """What might be faster than what is in use: gpu_leads.py beside this file."""
    leads = importlib.import_module("gpu_leads")
    leads.run(sys.modules[__name__])


def set_operator_constant(name: str, value: str) -> None:
    """MODULE.NAME of autoresearch.inside.ops, which must have it."""
    module_name, constant = name.rsplit(".", 1)
    module = importlib.import_module(f"autoresearch.inside.ops.{module_name}")
    if not hasattr(module, constant):
        raise SystemExit(f"--ops: {module.__name__} has no {constant}")
    setattr(module, constant, ast.literal_eval(value))


def section_tune() -> None:
    """What quack's own search over tile shapes would add."""
    from autoresearch.inside.ops import mlp

    N, C = 2**18, 512
    x, fc, flops = normal(N, C).detach(), normal(4 * C, C).detach(), 8.0 * N * C * C
    started = time.perf_counter()
    mlp.load_quack().up(x, fc.mT, tuned=True)
    say(f"quack tuning took {time.perf_counter() - started:.1f} s")
    ms = median_ms(lambda: mlp.load_quack().up(x, fc.mT, tuned=True))
    row("mlp quack tuned up", ms, flops, 0)


def time_tiles(
    name: str, a: torch.Tensor, b: torch.Tensor, squares: Any, tiles: tuple[int, ...], flops: float
) -> None:
    """The Triton kernel with one tile shape."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    from autoresearch.inside.ops import kernels

    rows, columns, depth, stages, warps = tiles
    (M, K), N = a.shape, len(b)
    out = torch.empty((M, N), device=CUDA, dtype=a.dtype)
    half, num = [rows, columns // 2], torch.cuda.get_device_properties(0).multi_processor_count
    describe = TensorDescriptor.from_tensor
    kept = out if squares is None else squares
    operands = (describe(a.detach(), [rows, depth]), describe(b.detach(), [columns, depth]))
    options = {"num_stages": stages, "num_warps": warps, "IS_BACKWARD": squares is not None}
    shape = {"ROWS": rows, "COLUMNS": columns, "DEPTH": depth}

    def launch() -> None:
        targets = (describe(out, half), describe(kept, half))
        kernels.gemm_relu2[(num,)](*operands, *targets, M, N, K, num, **shape, **options)

    row(name, median_ms(launch), flops, 2 * (a.numel() + out.numel() * (1 + (squares is not None))))


def time_head_loss() -> None:
    """N=262144 rows, V=8192."""
    from autoresearch.inside.ops import kernels, softcap_ce

    N, C, V = 2**18, 512, 8192
    x, head = normal(N, C), normal(V, C, dtype=torch.float32, scale=0.05)
    targets = torch.randint(0, V, (N,), device=CUDA)
    part = 2**16
    logits = torch.randn(part, V, device=CUDA, dtype=torch.bfloat16)
    losses = torch.empty(part, device=CUDA)
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    for programs, warps, registers, is_fast in (
        (2, 16, 64, True),  # what softcap_ce.py launches
        (2, 16, 64, False),
        (2, 8, 128, True),
        (1, 32, 64, True),
        (4, 8, 64, True),
    ):

        def launch(programs=programs, warps=warps, registers=registers, is_fast=is_fast) -> None:
            kernels.softcap_ce[(programs * processors,)](
                logits, targets, losses, V, part, V, 15.0, 1e-5, BLOCK_V=V,
                IS_FAST=is_fast, num_warps=warps, maxnreg=registers,
            )  # fmt: skip

        label = f"softcap_ce 65536 rows {programs}x{warps} r{registers} {'tanh' if is_fast else ''}"
        attempt(label, lambda n=label, f=launch: row(n, median_ms(f), 0, 4 * part * V))
    train = load_train({})
    plain = torch.compile(train.head_loss, dynamic=False)
    twin = torch.compile(softcap_ce.head_loss_twin, dynamic=False)
    for name, function in (
        ("triton", lambda: softcap_ce.head_loss(x, head, targets, 15.0)),
        ("train.py plain compiled", lambda: plain(x[None], head, targets[None])),
        ("twin compiled", lambda: twin(x, head, targets, 15.0)),
    ):

        def one(name: str = name, function: Any = function) -> None:
            both = forward_backward(function, (x, head), None)
            row(f"head loss {name}", median_ms(both), 6.0 * N * C * V, 4.0 * N * V)

        attempt(name, one)


def time_lookup() -> None:
    """Five tables of width 512, tokens as in text."""
    from autoresearch.inside.ops import table

    N, C, V = 2**18, 512, 8192
    zipf = 1 / torch.arange(1, V + 1, device=CUDA).float()
    tokens = torch.multinomial(zipf, N, replacement=True).view(128, 2048)
    embedding, values = normal(V, C), normal(4, V, C)
    grads = [normal(128, 2048, C) for _ in range(5)]
    for name, function in (("sorted once", table.lookup), ("twin", table.lookup_twin)):

        def one(name: str = name, function: Any = function) -> None:
            first, others = function(tokens, embedding, values)
            outs = [first, *others]
            moved = 5 * N * C * 2
            with torch.no_grad():
                ms = median_ms(lambda: function(tokens, embedding, values))
            row(f"lookup {name} forward", ms, 0, moved)
            backward = median_ms(
                lambda: torch.autograd.grad(outs, (embedding, values), grads, retain_graph=True)
            )
            row(f"lookup {name} backward", backward, 0, moved)

        attempt(name, one)
    attempt("segment_sum", lambda: time_segment_sum(tokens, grads[0].detach(), V))


def time_segment_sum(tokens: torch.Tensor, grad: torch.Tensor, vocab: int) -> None:
    """The kernel alone with several block shapes, and the sort."""
    from autoresearch.inside.ops import kernels

    ids, order = tokens.flatten().int().sort()
    grad = grad.flatten(0, -2).contiguous()
    (N, K), sums = grad.shape, torch.zeros(vocab, grad.size(-1), device=CUDA)
    row("sort of the tokens", median_ms(lambda: tokens.flatten().int().sort()), 0, 12 * N)
    for rows, columns, warps in (
        (64, 64, 4),
        (64, 32, 4),
        (64, 128, 8),
        (32, 128, 4),
        (128, 64, 8),
    ):

        def launch(rows: int = rows, columns: int = columns, warps: int = warps) -> None:
            grid = (-(-N // rows), -(-K // columns))
            operands = (grad, ids, order, sums, N, K)
            kernels.segment_sum[grid](*operands, ROWS=rows, COLUMNS=columns, num_warps=warps)

        label = f"segment_sum {rows}x{columns} {warps} warps"
        attempt(label, lambda n=label, f=launch: row(n, median_ms(f), 0, 2 * N * K))


def time_rotary() -> None:
    """Queries, keys and values from their product: the kernels, and train.py's own compiled."""
    from autoresearch.inside.ops import rotary

    plain = torch.compile(load_train({}).split_heads, dynamic=False)
    fast = lambda *given: rotary.split_heads(*given, gain=1.0)  # noqa: E731
    for name, function in (("triton", fast), ("compiled", plain)):
        for has_value in (True, False):
            label = f"split heads {name}{' value' if has_value else ''}"
            attempt(label, lambda n=label, f=function, v=has_value: time_split_heads(n, f, v))


def time_split_heads(name: str, function: Callable[..., Any], has_value: bool) -> None:
    """One way to do it, with a value embedding or without."""
    B, T, H, D = 128, 2048, 4, 128
    qkv, unit = normal(B, T, 3 * H * D), 2 * B * T * H * D
    extra = (normal(B, T, H), normal(B, T, H * D)) if has_value else (None, None)
    inputs = [t for t in (qkv, *extra) if t is not None]
    cos, sin = (torch.randn(T, 1, D // 2, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
    grads = [normal(B, T, H, D) for _ in range(3)]
    forward = lambda: function(qkv, cos, sin, H, *extra)  # noqa: E731
    with torch.no_grad():
        row(f"{name} forward", median_ms(forward), 0, (6 + has_value) * unit)
    both = lambda: torch.autograd.grad(forward(), inputs, grads)  # noqa: E731
    row(f"{name} both", median_ms(both), 0, (14 + 3 * has_value) * unit)


def time_polar() -> None:
    """The banks of the reference's default."""
    from autoresearch.inside.ops import polar

    coefficients = load_train({}).POLAR_COEFFICIENTS
    for shape in ((8, 512, 512), (8, 2048, 512), (8, 512, 2048)):
        matrices = torch.randn(shape, device=CUDA)
        small, large = min(shape[1:]), max(shape[1:])
        flops = 5 * shape[0] * (4 * small * small * large + 2 * small**3)
        for function in (polar.polar, polar.polar_symmetric):

            def one(function: Any = function, m: Any = matrices, flops: float = flops) -> None:
                ms = median_ms(lambda: function(m, coefficients, torch.bfloat16))
                row(f"{function.__name__} {tuple(m.shape)}", ms, flops, 0)

            attempt(function.__name__, one)


# ---------------------------------------------------------------------------------------------
# train.py itself, in a run without sandbox or processes


class SubmittedError(Exception):
    """Ends main(), as the real submit does."""


class Run:
    """The harness's interface with our own clock; profiles a few steps in the middle if asked."""

    def __init__(
        self, shards: list[torch.Tensor], vocab_size: int, given: argparse.Namespace, seed: int
    ):
        self.device, self.vocab_size, self.context, self.bos = CUDA, vocab_size, 2048, 0
        self.budget_s, self.seed, self.threads = float(given.seconds), seed, 0
        self.shards, self.max_steps = shards, given.steps
        self.profile_at = given.profile_at
        self.created = time.perf_counter()
        self.steps, self.first_s, self.profiler = 0, 0.0, None
        self.events: deque[torch.cuda.Event] = deque()
        self.marks: list[float] = []
        self.facts: dict[str, Any] = {}
        self.split: dict[str, float] = {}
        self.loss = math.nan

    def synthetic_rows(self, num_rows: int) -> torch.Tensor:
        return torch.randint(0, self.vocab_size, (num_rows, self.context + 1)).to(torch.int16)

    @contextlib.contextmanager
    def warmup(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        from autoresearch.inside import harness

        with harness.Run.warmup(self, model, optimizer):  # type: ignore[arg-type]
            yield
        self.warm_s = time.perf_counter() - self.created

    def start(self) -> list[torch.Tensor]:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.started = time.perf_counter()
        return self.shards

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started

    @property
    def progress(self) -> float:
        if self.max_steps:
            return min(1.0, self.steps / self.max_steps)
        return min(1.0, self.elapsed_s / self.budget_s)

    def proceed(self) -> bool:
        event = torch.cuda.Event()
        event.record()
        self.events.append(event)
        if len(self.events) > 2:
            self.events.popleft().synchronize()
        self.marks.append(time.perf_counter())
        if self.steps == self.profile_at:
            torch.cuda.synchronize()
            self.profiler = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CUDA]
            )
            self.profiler.__enter__()
        elif self.profiler is not None and self.steps == self.profile_at + 2:
            torch.cuda.synchronize()
            self.profiler.__exit__(None, None, None)
            attempt("profile", self._read_profile)
            self.profiler = None
        going = (
            self.steps < self.max_steps if self.max_steps else self.elapsed_s < self.budget_s - 0.3
        )
        self.steps += going
        return going

    def _read_profile(self) -> None:
        kernels: Counter[str] = Counter()
        for event in self.profiler.key_averages():
            kernels[event.key] += event.self_device_time_total / 2e3
        for name, ms in kernels.items():
            self.split[kind_of(name)] = self.split.get(kind_of(name), 0.0) + ms
        self.top = kernels.most_common(28)

    def report(self, **facts: Any) -> None:
        if facts.get("loss") is not None:
            self.loss = facts["loss"]

    def submit(self, model: torch.nn.Module, **facts: Any) -> None:
        torch.cuda.synchronize()
        self.trained_s = self.elapsed_s
        self.model, self.facts = model, facts
        raise SubmittedError


KINDS = (
    ("split heads", r"split_heads"),
    ("residual and norm", r"add_norm|add_up"),
    ("attention", r"flash|fmha|FlashAttention|sdpa|flex"),
    ("softcap CE", r"softcap_ce"),
    ("embedding gradient", r"segment_sum|embedding|radix|[sS]ort|indexing_backward"),
    ("matrix products", r"gemm|nvjet|cutlass|GemmUniversal|quack|splitK|cublas"),
    ("compiled point-wise", r"triton_"),
    ("copies and fills", r"[mM]emcpy|[mM]emset|copy|fill|CatArray"),
)


def kind_of(kernel: str) -> str:
    """The class of a kernel by its name."""
    for kind, pattern in KINDS:
        if re.search(pattern, kernel):
            return kind
    return "other"


def load_train(constants: dict[str, Any]) -> ModuleType:
    """A fresh train.py with some constants replaced."""
    from autoresearch.values.constants import substitute

    source = substitute((TEMPLATES / "train.py").read_text(), constants)
    folder = Path("/tmp") / f"train_{abs(hash(source))}"  # noqa: S108 - torch.compile wants a file
    folder.mkdir(exist_ok=True)
    path = folder / "train.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(f"train_{abs(hash(source))}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def load_rows(folder: Path | None) -> list[torch.Tensor]:
    """Training shards as the harness hands them over."""
    if folder is None:
        return [torch.randint(0, 8192, (60_000, 2049)).to(torch.int16)]
    paths = sorted(folder.glob("rows_*.npy"))
    return [torch.from_numpy(np.load(path).view(np.int16)) for path in paths]


def section_train(preset: str, given: argparse.Namespace, seed: int) -> None:
    """The preset's real training loop for a while, and a table."""
    tables = tomllib.loads((TEMPLATES / "presets.toml").read_text())
    constants = {**tables[preset]["constants"], **given.set}
    train = load_train(constants)
    torch._dynamo.reset()
    run = Run(load_rows(given.rows), 8192, given, seed)
    try:
        train.main(run)
    except SubmittedError:
        pass
    finally:
        gc.enable()
        gc.unfreeze()
    tokens = run.facts["total_tokens_M"] * 1e6
    gaps = [b - a for a, b in zip(run.marks[20:], run.marks[21:], strict=False)]
    step_ms = statistics.median(gaps) * 1e3 if gaps else math.nan
    rate = tokens / run.steps / step_ms * 1e3
    name = f"{preset} seed {seed} {given.set or ''} {' '.join(given.ops)}"
    summary = {
        "step_ms": step_ms,
        "tokens_per_s": rate,
        "tokens_M_in_300_s": rate * 300 / 1e6,
        "mfu_percent": 100 * rate * run.model.flops_per_token() / PEAK,
        "mfu_exact_percent": 100 * rate * run.model.flops_per_token(True) / PEAK,
        "peak_GB": torch.cuda.max_memory_allocated() / 1e9,
        "ready_s": run.warm_s,
        "steps": run.steps,
        "trained_s": run.trained_s,
        "tokens_M": tokens / 1e6,
        "loss": float(run.loss),
    }
    if given.score and given.rows:
        summary |= attempt("score", lambda: score(run.model, given.rows)) or {}
    RESULTS.setdefault("train", {})[name] = {**summary, "split_ms": run.split}
    say(f"--- {name}")
    for key, value in summary.items():
        say(f"  {key:22s} {value:.4f}" if isinstance(value, float) else f"  {key:22s} {value}")
    if run.split:
        say("  split of a step, ms (profiled, sum of kernels):")
        for kind, ms in sorted(run.split.items(), key=lambda item: -item[1]):
            say(f"    {kind:24s} {ms:8.2f}")
        say(f"    {'all kernels':24s} {sum(run.split.values()):8.2f}")
        for kernel, ms in run.top:
            say(f"      {ms:8.3f}  {kernel[:100]}")


@torch.inference_mode()
def score(model: torch.nn.Module, folder: Path) -> dict[str, float]:
    """Bits per byte of the validation rows, ours and the reference's, by true and decoded bytes."""
    lengths = torch.from_numpy(np.load(folder / "bytes.npy").astype(np.int64)).to(CUDA)
    model.eval()
    results = {}
    for name in ("val", "val_reference"):
        if not (folder / f"{name}.npy").exists():
            continue
        rows = torch.from_numpy(np.load(folder / f"{name}.npy").view(np.int16))
        nats, num_bytes = (
            torch.zeros((), device=CUDA, dtype=torch.float64),
            torch.zeros(2, device=CUDA),
        )
        num_bytes = num_bytes.double()
        started = time.perf_counter()
        for part in rows.split(16):
            tokens = part.to(CUDA).long()
            logits = model(tokens[:, :-1])
            targets = tokens[:, 1:].flatten()
            losses = F.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
            counted = lengths[0][targets] > 0
            nats += losses[counted].double().sum()
            num_bytes += lengths[:, targets].sum(1).double()
        bits = (nats / math.log(2) / num_bytes).tolist()
        results |= {f"{name}_bpb": bits[0], f"{name}_bpb_decoded": bits[1]}
        results[f"{name}_score_s"] = time.perf_counter() - started
    return results


# ---------------------------------------------------------------------------------------------


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--sections", default="env,check,time,reference,h100")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--profile-at", type=int, default=40)
    parser.add_argument("--score", action="store_true")
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--ops", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    pairs = (word.split("=", 1) for word in given.set)
    warnings.filterwarnings("ignore")  # of the DSLs, at every compilation
    given.set = {name: ast.literal_eval(value) for name, value in pairs}
    for word in given.ops:
        set_operator_constant(*word.split("=", 1))
    sections = {"env": section_env, "check": section_check}
    sections |= {"time": section_time, "tune": section_tune, "leads": section_leads}
    for name in given.sections.split(","):
        started = time.perf_counter()
        say(f"===== {name}")
        if name in sections:
            attempt(name, sections[name])
        else:
            for seed in range(given.seeds):
                attempt(name, lambda n=name, s=seed: section_train(n, given, s))
        say(f"===== {name}: {time.perf_counter() - started:.0f} s")
        if given.out:
            given.out.write_text(json.dumps(RESULTS, indent=1, default=str))


if __name__ == "__main__":
    main()
