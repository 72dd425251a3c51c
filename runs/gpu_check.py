"""Operators on one GPU, forward and backward, against float64.

Usage: python runs/gpu_bench.py --sections check (this file is not called by itself)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from gpu_meter import CUDA, attempt, check, doubled, normal
from gpu_train import load_train


def section_check() -> None:
    """Every operator on fresh random inputs and odd shapes."""
    torch.manual_seed(time.time_ns() % 2**31)
    attempt("attention", check_attention)
    attempt("split heads", check_split_heads)
    attempt("head loss", check_head_loss)
    attempt("float8", check_float8)
    for backend in ("float8", "quack", "triton"):
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
        arguments = (inputs[0], *turns, H, *inputs[1:], *empty, True, 1.2)
        doubles = (t.double() for t in turns)
        rest = (*exact[1:], *empty, True, 1.2)
        wanted = rotary.split_heads_twin(exact[0], *doubles, H, *rest)
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

    for N, C, V in ((1000, 512, 8192), (70000, 64, 1021), (500, 768, 16384)):
        x, head = normal(N, C), normal(V, C, dtype=torch.float32, scale=0.2)
        targets = torch.randint(0, V, (N,), device=CUDA)
        exact = doubled(x, head)
        wanted = head_loss_twin(*exact, targets, 15.0)
        loss = head_loss(x, head, targets, 15.0)
        got = torch.autograd.grad(loss, (x, head))
        pairs = [(loss, wanted), *zip(got, torch.autograd.grad(wanted, exact), strict=True)]
        check(f"head loss N{N} C{C} V{V}", pairs, 2e-2)


def check_float8() -> None:
    """Output and two gradients, against rounded inputs."""
    from autoresearch.inside.ops.float8 import linear, linear_twin

    for N, C, columns in ((4096, 768, 2304), (333, 512, 1536)):
        x, weight, grad = normal(1, N, C), normal(columns, C, scale=C**-0.5), normal(1, N, columns)
        exact = doubled(x, weight)
        out, wanted = linear(x, weight), linear_twin(*exact)
        got = torch.autograd.grad(out, (x, weight), grad)
        pairs = [(out, wanted)]
        pairs += zip(got, torch.autograd.grad(wanted, exact, grad.double()), strict=True)
        check(f"float8 N{N} C{C}", pairs, 1e-2)


def check_mlp(backend: str) -> None:
    """Output and three gradients."""
    from autoresearch.inside.ops import float8, mlp

    twin = float8.relu2_mlp_twin if backend == "float8" else mlp.relu2_mlp_twin
    for N, C in ((4096, 512), (1000, 640), (333, 128)):
        x, fc = normal(1, N, C), normal(4 * C, C, scale=C**-0.5)
        proj, grad = normal(C, 4 * C, scale=C**-0.5), normal(1, N, C)
        exact = doubled(x, fc, proj)
        wanted = twin(*exact)
        out = mlp.relu2_mlp(x, fc, proj, backend)
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
