"""Times of operators on one GPU, forward and backward, against twin and roofline.

Usage: python runs/gpu_bench.py --sections time,tune (this file is not called by itself)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from gpu_check import attention_rungs
from gpu_meter import CUDA, attempt, forward_backward, median_ms, normal, row, say
from gpu_train import load_train


def section_time() -> None:
    """Forward and backward of each operator at the reference's micro-batch."""
    say(f"{'operator':44s} {'ms':>8s} {'floor':>8s} {'x floor':>8s}   TFLOP/s")
    attempt("time attention", time_attention)
    attempt("time mlp", time_mlp)
    attempt("time head loss", time_head_loss)
    attempt("time lookup", time_lookup)
    attempt("time rotary", time_rotary)
    attempt("time polar", time_polar)


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


def time_tiles(
    name: str, a: torch.Tensor, b: torch.Tensor, squares: Any, tiles: tuple[int, ...], flops: float
) -> None:
    """The Triton kernel with one tile shape."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    from autoresearch.inside.ops.kernels import mlp as kernels

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
    from autoresearch.inside.ops import softcap_ce
    from autoresearch.inside.ops.kernels import softcap_ce as kernels

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
    from autoresearch.inside.ops.kernels import table as kernels

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
        for has_value, offset in ((True, False), (False, False), (True, True)):
            label = f"split heads {name}{' value' * has_value}{' offset' * offset}"
            attempt(label, partial(time_split_heads, label, function, has_value, offset))


def time_split_heads(
    name: str, function: Callable[..., Any], has_value: bool, offset: bool
) -> None:
    """One way to do it, with a value embedding or without, with a key offset or without."""
    B, T, H, D = 128, 2048, 4, 128
    qkv, unit = normal(B, T, 3 * H * D), 2 * B * T * H * D
    extra = (normal(B, T, H), normal(B, T, H * D)) if has_value else (None, None)
    inputs = [t for t in (qkv, *extra) if t is not None]
    cos, sin = (torch.randn(T, 1, D // 2, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
    grads = [normal(B, T, H, D) for _ in range(3)]
    forward = lambda: function(qkv, cos, sin, H, *extra, offset)  # noqa: E731
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


def section_tune() -> None:
    """What quack's own search over tile shapes would add."""
    from autoresearch.inside.ops import linear

    N, C = 2**18, 512
    x, fc, flops = normal(N, C).detach(), normal(4 * C, C).detach(), 8.0 * N * C * C
    started = time.perf_counter()
    linear.load_gemm().up(x, fc.mT, tuned=True)
    say(f"quack tuning took {time.perf_counter() - started:.1f} s")
    ms = median_ms(lambda: linear.load_gemm().up(x, fc.mT, tuned=True))
    row("mlp quack tuned up", ms, flops, 0)
