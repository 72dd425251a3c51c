"""Which of train.py's own operators compute something else than the fast ones that would take their
place: whoever edits one wants the edit, not its speed.

Each is compared with the twin of its replacement, values and gradients, on a few numbers on the
CPU; this takes milliseconds. What fails counts as edited too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from autoresearch.inside.ops import (
    attention,
    documents,
    heads,
    linear,
    mlp,
    residual,
    rotary,
    softcap_ce,
    table,
)
from autoresearch.inside.ops.shape import Shape
from autoresearch.inside.ops.trial_call import both_ways

OFF = 1e-4  # in float32, relative to the twin's norm
B, T, H, G, D, C, V, BOS = 2, 12, 2, 1, 8, 16, 20, 3  # sizes; T holds whole and short windows

Function = Callable[..., Any]
Case = tuple[Function, Function, list[Tensor]]


def find_edited(operators: Any, shape: Shape, *, softcap: float, gain: float) -> set[str]:
    """Names of operators that are no longer what their twins are, or no longer there."""
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed the card as well
        makers: dict[str, Callable[[], list[Case]]] = {
            "linear": partial(_linear, operators, "linear"),
            "linear_normed": partial(_linear, operators, "linear_normed"),
            "mlp": partial(_mlp, operators),
            "add_norm": partial(_add_norm, operators),
            "split_heads": partial(_split_heads, operators, shape, gain),
            "attend": partial(_attend, operators, shape),
            "attend_heads": partial(_attend_heads, operators, shape, gain),
            "lookup": partial(_lookup, operators),
            "head_loss": partial(_head_loss, operators, softcap),
            "softcap": partial(_softcap, operators, softcap),
        }
        return {name for name, make in makers.items() if not _are_twins(make)}


def _are_twins(make: Callable[[], list[Case]]) -> bool:
    try:
        cases = make()
    except AttributeError:  # a train.py of another version, or without it by somebody's choice
        return False
    return all(map(_agrees, cases))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other take longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _agrees(case: Case) -> bool:
    own, twin, inputs = case
    try:
        pairs = zip(_results(own, inputs), _results(twin, inputs), strict=True)
        return all(bool((a - b).norm() <= OFF * b.norm()) for a, b in pairs)
    except Exception:  # noqa: BLE001 - another signature, another shape: not ours
        return False


def _results(function: Function, inputs: list[Tensor]) -> list[Tensor]:
    def outs(*own: Tensor) -> Sequence[Tensor]:
        out = function(*own)
        return [out] if isinstance(out, Tensor) else [t for t in out if t.numel()]

    with torch.no_grad():
        grads = [torch.linspace(-1, 2, t.numel()).view(t.shape) for t in outs(*inputs)]
    return both_ways(outs, inputs, grads)


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape)


def _linear(operators: Any, name: str) -> list[Case]:
    return [(getattr(operators, name), linear.linear_twin, [_normal(B, T, C), _normal(24, C)])]


def _mlp(operators: Any) -> list[Case]:
    return [(operators.mlp, mlp.relu2_mlp_twin, [_normal(B, T, C), _normal(24, C), _normal(C, 24)])]


def _add_norm(operators: Any) -> list[Case]:
    """With what is mixed in, from `share`, and without."""

    def mixing(add_norm: Function, share: Function) -> Function:
        def sums(x: Tensor, y: Tensor, x0: Tensor, factors: Tensor, resid: Tensor) -> list[Tensor]:
            straight, mixed = share(x0, factors)
            first = add_norm(x, y, mixed[0], resid, 4)
            return [*first, *add_norm(straight, None, mixed[1], resid, 0)]

        return sums

    twins = (residual.add_norm_twin, residual.share_twin)
    stream = [_normal(B, T, C) for _ in range(3)]
    given = [*stream, torch.tensor([0.3, -0.2]), torch.tensor(0.8)]
    own = mixing(operators.add_norm, operators.share)
    return [(own, mixing(*twins), given), (operators.add_norm, twins[0], stream[:2])]


def _heads() -> list[Tensor]:
    """The product, cosines and sines, how far values open, and values."""
    angles = _normal(T, 1, D // 2)
    product = _normal(B, T, (H + 2 * G) * D)
    return [product, angles.cos(), angles.sin(), _normal(B, T, G), _normal(B, T, G * D)]


def _split_heads(operators: Any, shape: Shape, gain: float) -> list[Case]:
    qkv, cos, sin, opening, value = _heads()
    cases: list[Case] = []
    for mix in ([opening, value], []):

        def split(function: Function, *own: Tensor, **more: float) -> Any:
            rest = own[1:] or (None, None)
            return function(own[0], cos, sin, H, *rest, shape.has_offset, **more)

        functions = partial(split, operators.split_heads), partial(split, rotary.split_heads_twin)
        cases.append((functions[0], partial(functions[1], gain=gain), [qkv, *mix]))
    return cases


def _documents(operators: Any, shape: Shape) -> tuple[Tensor | None, Tensor | None]:
    """Its own numbers of documents, and the twin's."""
    tokens = torch.arange(B * T).view(B, T) % 5
    if not shape.has_documents:
        return None, None
    return operators.find_documents(tokens, BOS), documents.count_documents(tokens, BOS)


def _attend(operators: Any, shape: Shape) -> list[Case]:
    inputs = [_normal(B, T, H, D), _normal(B, T, G, D), _normal(B, T, G, D)]

    def attend(window: int, is_own: bool, *own: Tensor) -> Any:
        which = _documents(operators, shape)[0 if is_own else 1] if window < 0 else None
        function: Function = operators.attend if is_own else attention.attend_twin
        return function(*own, window, which)

    return [(partial(attend, w, True), partial(attend, w, False), inputs) for w in (4, -1)]


def _attend_heads(operators: Any, shape: Shape, gain: float) -> list[Case]:
    qkv, cos, sin, opening, value = _heads()

    def attend(is_own: bool, *own: Tensor) -> Any:
        which = _documents(operators, shape)[0 if is_own else 1]
        given = (own[0], cos, sin, H, own[1], own[2], -1, shape.has_offset, which)
        if is_own:
            return operators.attend_heads(*given)
        return heads.attend_heads_twin(*given, gain)

    return [(partial(attend, True), partial(attend, False), [qkv, opening, value])]


def _lookup(operators: Any) -> list[Case]:
    tokens = torch.arange(B * T).view(B, T) % V

    def flat(function: Function, *own: Tensor) -> list[Tensor]:
        first, others = function(tokens, *own)
        return [first, *others]

    functions = partial(flat, operators.lookup), partial(flat, table.lookup_twin)
    return [(*functions, [_normal(V, C), _normal(2, V, G * D)])]


def _head_loss(operators: Any, cap: float) -> list[Case]:
    targets = torch.arange(B * T).view(B, T) % V

    def loss(function: Function, *own: Tensor, **more: float) -> Any:
        return function(*own, targets, **more)

    twin = partial(loss, softcap_ce.head_loss_twin, cap=cap)
    return [(partial(loss, operators.head_loss), twin, [_normal(B, T, C) * 3, _normal(V, C)])]


def _softcap(operators: Any, cap: float) -> list[Case]:
    return [(operators.softcap, partial(softcap_ce.softcap_twin, cap=cap), [_normal(T, V) * cap])]
