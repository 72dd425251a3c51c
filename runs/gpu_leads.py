"""Variants of the operators side by side at the reference's micro-batch: right, and how fast.

Usage: python runs/gpu_bench.py --sections leads (this file is not called by itself)

Hardware: one NVIDIA H100 80GB; FlashAttention 4 and quack where they can be imported. Duration:
about a minute and a half, most of it compilation. Errors are relative to float64, in norm. What
fails is printed, and the next thing follows. The line `switch:` says how to try a winner in
training: --ops MODULE.NAME=VALUE of gpu_bench.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gpu_meter as meter
import torch

N, C, T, H, D = 2**18, 512, 2048, 4, 128
UNIT = 2 * N * C  # bytes of one tensor (N, C)


def section_leads() -> None:
    """All leads, the largest expected gain first."""
    torch.manual_seed(time.time_ns() % 2**31)
    meter.say(f"{'lead':44s} {'ms':>8s} {'floor':>8s} {'x floor':>8s}   TFLOP/s")
    leads = (residual, heads, split_heads, gradients_of_x0, gate, projections, loss)
    for lead in leads:
        meter.attempt(lead.__name__, lead)


def agree(
    name: str,
    function: Callable[..., Any],
    twin: Callable[..., Any],
    inputs: Any,
    bound: float = 1e-2,
) -> None:
    """Outputs and all gradients against the twin in float64."""
    exact = meter.doubled(*inputs)
    outs, goals = function(*inputs), twin(*exact)
    outs = [outs] if isinstance(outs, torch.Tensor) else [out for out in outs if out.numel()]
    goals = [goals] if isinstance(goals, torch.Tensor) else [goal for goal in goals if goal.numel()]
    # like the outputs in part, or gradients of scalars would be small sums of noise
    grads = [torch.randn_like(out) + out.detach() for out in outs]
    got = [*outs, *torch.autograd.grad(outs, inputs, grads)]
    wanted = [*goals, *torch.autograd.grad(goals, exact, [g.double() for g in grads])]
    meter.check(name, list(zip(got, wanted, strict=True)), bound)


def residual() -> None:
    """Adding and norming: both kernels, several shapes of programs, against compiled torch."""
    from autoresearch.inside.ops import residual as ops

    meter.say("switch: residual.ENABLED=False is what was; residual.ROWS, WARPS, ROWS_BACK, ...")
    factor, resid = (torch.tensor(v, device="cuda", requires_grad=True) for v in (0.2, 0.9))

    def fast(x, y, *mixed):  # type: ignore[no-untyped-def]
        mixed = (ops.share(mixed[0], factor[None])[1][0], resid) if mixed else ()
        return ops.add_norm(x, y, *mixed)[:2]

    def plain(x, y, *mixed):  # type: ignore[no-untyped-def]
        mixed = (factor * mixed[0], resid.to(x.dtype)) if mixed else ()
        return ops.add_norm_twin(x, y, *mixed)[:2]

    for width in (512, 640):
        small = [meter.normal(3, 333, width) for _ in range(3)]
        agree(f"add norm, all, C{width}", fast, plain, small)
        agree(f"add norm, two, C{width}", fast, plain, small[:2])
    x, y, x0, grad, more = (meter.normal(N, C) for _ in range(5))
    for label, inputs, passes in (("all", [x, y, x0], (5, 7)), ("two", [x, y], (4, 4))):
        for name, function in (("compiled", torch.compile(plain, dynamic=False)), ("triton", fast)):
            meter.attempt(name, lambda f=function, n=f"{label} {name}", i=inputs, p=passes: (
                both_ways(f"add norm {n}", f, i, (grad, more), p)))  # fmt: skip
        for rows, warps in ((4, 4), (16, 8), (2, 2), (1, 1)):
            ops.ROWS, ops.WARPS = rows, warps
            ops.ROWS_BACK, ops.WARPS_BACK = rows, warps
            label_too = f"add norm {label} {rows} rows {warps} warps"
            meter.attempt(label_too, lambda n=label_too, i=inputs, p=passes: (
                both_ways(n, fast, i, (grad, more), p)))  # fmt: skip
        ops.ROWS, ops.WARPS, ops.ROWS_BACK, ops.WARPS_BACK = 8, 4, 4, 4


def both_ways(name: str, function: Any, inputs: Any, grads: Any, passes: tuple[int, int]) -> None:
    """Forward and backward apart; `passes` over one tensor."""
    with torch.no_grad():
        ms = meter.median_ms(lambda: function(*inputs))
    meter.row(f"{name} forward", ms, 0, passes[0] * UNIT)
    outs = function(*inputs)[:2]
    ms = meter.median_ms(lambda: torch.autograd.grad(outs, inputs, grads, retain_graph=True))
    meter.row(f"{name} backward", ms, 0, passes[1] * UNIT)


def gradients_of_x0() -> None:
    """Nine gradients into one and nine scalars: at once, and one by one."""
    from autoresearch.inside.ops import residual as ops

    x, straight, *grads = (meter.normal(N, C).detach() for _ in range(11))
    factors = torch.linspace(0.1, 0.9, 9, device="cuda")
    exact = straight.double() + sum(f * g.double() for f, g in zip(factors, grads, strict=True))
    call = lambda: ops.share_backward(straight, list(grads), x, factors)  # noqa: E731
    meter.check("share 9", [(call()[0], exact)], 5e-3)
    del exact
    meter.row("share 9 at once", meter.median_ms(call), 0, 12 * UNIT)

    def one_by_one() -> None:
        total = straight
        for factor, grad in zip(factors, grads, strict=True):
            total = total + factor * grad
            (grad * x).sum()

    meter.row("share 9 one by one", meter.median_ms(one_by_one), 0, 12 * UNIT)


def heads() -> None:
    """Attention with split heads: one operator without copies of the values, and two."""
    from functools import partial

    from autoresearch.inside.ops import fa4, rotary
    from autoresearch.inside.ops import heads as ops

    meter.say("switch: heads.ENABLED=False is what was")

    def two(qkv: Any, cos: Any, sin: Any, H: int, opening: Any, value: Any, *rest: Any) -> Any:
        parts = rotary.split_heads(qkv, cos, sin, H, opening, value, False, 1.0)
        return fa4.attend(*parts, rest[0])

    one = partial(ops.attend_heads, gain=1.0)
    for num in (1, 3):
        shapes = ((2, 500, 3 * H * D), (2, 500, H), (2, 500, H * D))
        inputs = [meter.normal(*shape) for shape in shapes[:num]]
        angles = torch.randn(500, 1, D // 2, device="cuda")
        turns = (angles.cos().bfloat16(), angles.sin().bfloat16())
        rest = [None] * (3 - num)
        for window in (500, 77):
            agree(f"heads{' value' * (num > 1)} w{window}",
                  lambda q, *v, w=window, t=turns, r=rest: one(q, *t, H, *v, *r, w, False, None),
                  lambda q, *v, w=window, t=turns, r=rest: ops.attend_heads_twin(
                      q, *(x.to(q.dtype) for x in t), H, *v, *r, w, False, None, 1.0),
                  inputs, 2e-2)  # fmt: skip
    turns = [torch.randn(T, 1, D // 2, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    B = N // T
    shapes = ((B, T, 3 * H * D), (B, T, H), (B, T, H * D))
    grad = meter.normal(B, T, H, D)
    for num in (1, 3):
        inputs = [meter.normal(*shape) for shape in shapes[:num]]
        arguments = (inputs[0], *turns, H, *(inputs[1:] or (None, None)))
        for window in (T, T // 2):
            for name, function in (("two operators", two), ("one operator", one)):
                label = f"heads{' value' * (num > 1)} w{window} {name}"
                call = lambda f=function, a=arguments, w=window: f(*a, w, False, None)  # noqa: E731
                both = meter.forward_backward(call, inputs, grad)
                moved = (20 + 3 * (num > 1)) * UNIT
                meter.attempt(label, lambda n=label, b=both, m=moved: (
                    meter.row(n, meter.median_ms(b), 0, m)))  # fmt: skip


def split_heads() -> None:
    """Shapes of programs for rotary embedding and QK-norm."""
    from autoresearch.inside.ops import rotary

    meter.say("switch: rotary.ROWS, WARPS, ROWS_BACK, WARPS_BACK; 16, 4, 16, 4 is what was")
    B = N // T
    qkv = meter.normal(B, T, 3 * H * D).detach()
    turns = [torch.randn(T, 1, D // 2, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    dq, dk = (meter.normal(B, T, H, D).detach() for _ in range(2))
    goal, rest = torch.empty_like(qkv), (None, None)
    for rows, warps in ((16, 4), (8, 4), (8, 2), (4, 1), (4, 2), (32, 8), (16, 8)):
        rotary.ROWS, rotary.WARPS, rotary.ROWS_BACK, rotary.WARPS_BACK = rows, warps, rows, warps
        name = f"q and k, {rows} rows {warps} warps"
        call = lambda: rotary.launch_forward(  # noqa: E731
            qkv, *turns, *rest, H, False, 1.0, writes_values=False
        )
        back = lambda: rotary.launch_backward(  # noqa: E731
            dq, dk, None, qkv, *turns, *rest, False, 1.0, goal
        )
        meter.attempt(name, lambda n=name, f=call: (
            meter.row(f"{n} forward", meter.median_ms(f), 0, 4 * UNIT)))  # fmt: skip
        meter.attempt(name, lambda n=name, f=back: (
            meter.row(f"{n} backward", meter.median_ms(f), 0, 6 * UNIT)))  # fmt: skip
    rotary.ROWS, rotary.WARPS, rotary.ROWS_BACK, rotary.WARPS_BACK = 16, 4, 16, 4


def gate() -> None:
    """What the gate of a value embedding costs: tiny products over many rows."""
    first, gate = meter.normal(N, 32), meter.normal(H, 32)
    d = meter.normal(N, H).detach()
    with torch.no_grad():
        for name, call in (
            ("gate forward", lambda: first @ gate.mT),
            ("gate, gradient of its weights by cuBLAS", lambda: d.mT @ first),
            ("gate, gradient of its input", lambda: d @ gate),
        ):
            meter.row(name, meter.median_ms(call), 0, 2 * N * (32 + H))
        parts = lambda: torch.einsum("pnh,pnc->hc", d.view(512, -1, H), first.view(512, -1, 32))  # noqa: E731
        meter.row("gate, the same as einsum", meter.median_ms(parts), 0, 2 * N * (32 + H))
        batched = lambda: torch.bmm(  # noqa: E731
            d.view(512, -1, H).mT, first.view(512, -1, 32)
        ).sum(0)
        meter.row("gate, the same as 512 products", meter.median_ms(batched), 0, 2 * N * (32 + H))


def projections() -> None:
    """The products of both presets by cuBLAS and by quack, half a second each at the power cap."""
    meter.say("switch: linear.ENABLED=False is what was; linear.TILES and WIDE_TILES")
    for rows, width, vocab in ((2**18, 512, 8192), (2**17, 768, 16384)):
        for inner, outer in ((width, 3 * width), (width, width), (4 * width, width)):
            product(rows, inner, outer, is_back=False)
            product(rows, outer, inner, is_back=True)
        product(rows // 8, width, vocab, is_back=False)
        product(rows // 8, vocab, width, is_back=True)


def product(rows: int, inner: int, outer: int, *, is_back: bool) -> None:
    """One of them; the way back multiplies by the matrix as it lies."""
    from autoresearch.inside.ops import linear

    x = meter.normal(rows, inner).detach()
    weight = meter.normal(*((inner, outer) if is_back else (outer, inner))).detach()
    b = weight if is_back else weight.mT
    name = f"{rows} x {inner} -> {outer}{' back' * is_back}"
    flops, moved = 2.0 * rows * inner * outer, 2.0 * rows * (inner + outer)
    meter.row(f"{name} cuBLAS", meter.median_ms(lambda: x @ b, 500), flops, moved)
    goal = x[:2048] @ b
    for tiles in (linear.TILES, linear.WIDE_TILES):

        def one(tiles: tuple[int, ...] = tiles, label: str = f"{name} quack {tiles[:2]}") -> None:
            call = lambda: linear.load_gemm().product(x, b, tiles)  # noqa: E731
            meter.check(label, [(call()[:2048], goal)], 1e-2)
            meter.row(label, meter.median_ms(call, 500), flops, moved)

        meter.attempt(f"quack {tiles}", one)


def loss() -> None:
    """How much the last factor costs on the way back from the loss."""
    from autoresearch.inside.ops.softcap_ce import rescale

    x = meter.normal(N, C).detach()
    for value in (1.0, 0.5):
        factor = torch.tensor(value, device="cuda")
        for name, call in (("plain", torch.mul), ("rescale", rescale)):
            ms = meter.median_ms(partial(call, x, factor))
            meter.row(f"gradient times {value}, {name}", ms, 0, 2 * UNIT)
