"""The residual stream: sums and the norm after them in one kernel, and one sum of many gradients.

A layer adds to the stream twice and norms it twice. Forward, one kernel reads what is added and
writes sum and normed sum; backward, one kernel turns both gradients into that of what was added.
Backward needs the normed sum and a length a token: the sum is their product and is not kept.
`share` mixes one tensor into all layers without a copy for each, forward or backward: layers read
the tensor itself, and its gradient is made at the end from those of the stream, which exist anyway.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from autoresearch.inside.ops.shape import Shape
from autoresearch.inside.ops.trial_call import both_ways, compare, normal

ENABLED = True  # False: plain torch, compiled
ROWS, WARPS = 8, 4  # tokens and warps a program, forward
ROWS_BACK, WARPS_BACK = 4, 4  # backward
GRADIENTS_AT_ONCE = 9  # that the kernel of `share` takes

TRIED_TOKENS = 64  # of a trial call; Triton compiles another kernel unless 16 divides it

Sums = tuple[Tensor, Tensor, Tensor]


class Mixed(NamedTuple):
    """`factor` times `x0`, which nobody has made: for add_norm alone to read.

    `product` stands for it in autograd; its values are NaN.
    """

    product: Tensor
    x0: Tensor
    factor: Tensor


class Kind(NamedTuple):
    """What a sum of the model is made of, and what of it is used."""

    has_y: bool = True
    is_mixed: bool = False
    front: int = 0
    is_last: bool = False  # the sum before the norm has no gradient


def add_norm_twin(
    x: Tensor,
    y: Tensor | None = None,
    mixed: Tensor | None = None,
    resid: Tensor | None = None,
    front: int = 0,
) -> Sums:
    """The definition: x + y, or resid (x + y + mixed); that normed; the first channels of this.

    Args:
        x: (..., C).
        y: likewise, added; or None.
        mixed: likewise, one of what `share` gives; or None, then `resid` is None too.
        resid: a scalar.
        front: how many channels the third result has.
    """
    if y is not None:
        x = x + y
    if mixed is not None:
        x = resid * (x + mixed)
    normed = F.rms_norm(x, (x.size(-1),), eps=1e-6)
    return x, normed, normed[..., :front]


def share_twin(x: Tensor, factors: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The definition: x, and x times each of factors (L,), for add_norm alone to read."""
    return x, [factor * x for factor in factors.unbind()]


def add_norm(
    x: Tensor,
    y: Tensor | None = None,
    mixed: Mixed | None = None,
    resid: Tensor | None = None,
    front: int = 0,
) -> Sums:
    """As the twin, with what `share` gives as `mixed`."""
    _check(x, mixed, resid)
    y = y if y is None else y.expand_as(x)
    total, normed, first, _ = add_norm_forward(x, y, *(mixed or (None, None, None)), resid, front)
    return total, normed, first


def _check(x: Tensor, mixed: object, resid: Tensor | None) -> None:
    """Raises TypeError or ValueError where plain torch would do something else, or nothing."""
    if (mixed is None) != (resid is None) or not isinstance(mixed, Mixed | None):
        raise TypeError(
            f"add_norm got {type(mixed).__name__} as mixed and {type(resid).__name__} as resid, "
            "expected one of what share gives and a scalar, or neither; add other tensors to y"
        )
    if resid is not None and resid.numel() != 1:
        raise ValueError(f"add_norm got resid {tuple(resid.shape)}, expected a scalar")
    if mixed is not None and mixed.x0.shape != x.shape:
        shapes = f"{tuple(mixed.x0.shape)} to mix into {tuple(x.shape)}"
        raise ValueError(f"add_norm got {shapes}, expected the same shape")


@torch.library.custom_op("autoresearch::add_norm_forward", mutates_args=())
def add_norm_forward(
    x: Tensor,
    y: Tensor | None,
    product: Tensor | None,
    x0: Tensor | None,
    factor: Tensor | None,
    resid: Tensor | None,
    front: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum, normed sum, its first channels, and the length (...) in float32 that parts the two.

    `product` has a gradient, of x0 and factor, and is not read.
    """
    from autoresearch.inside.ops.kernels import residual as kernels

    x, C = x.contiguous(), x.size(-1)
    total, normed, first, size = _outputs(x, front)
    num = size.numel()
    kernels.add_norm[(-(-num // ROWS),)](
        x,
        x if y is None else y.contiguous(),
        x if x0 is None else x0.contiguous(),
        x if factor is None else factor,
        x if resid is None else resid,
        total,
        normed,
        first,
        size,
        num,
        C,
        FRONT=front,
        ROWS=ROWS,
        BLOCK=_power(C),
        HAS_Y=y is not None,
        IS_MIXED=x0 is not None,
        num_warps=WARPS,
    )
    return total, normed, first, size


def _outputs(x: Tensor, front: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = x.shape[:-1]
    first, size = x.new_empty(*shape, front), x.new_empty(shape, dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape), first, size


def _power(width: int) -> int:
    """The next power of 2."""
    return 1 << (width - 1).bit_length()


@add_norm_forward.register_fake
def _(
    x: Tensor,
    y: Tensor | None,
    product: Tensor | None,
    x0: Tensor | None,
    factor: Tensor | None,
    resid: Tensor | None,
    front: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(x, front)


@torch.library.custom_op("autoresearch::add_norm_backward", mutates_args=())
def add_norm_backward(
    dtotal: Tensor | None,
    dnormed: Tensor,
    dfirst: Tensor | None,
    normed: Tensor,
    size: Tensor,
    resid: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of all that was added, and of the scalar, which is empty without one."""
    from autoresearch.inside.ops.kernels import residual as kernels

    C, num, front = normed.size(-1), size.numel(), 0 if dfirst is None else dfirst.size(-1)
    num_programs = -(-num // ROWS_BACK)
    dx = torch.empty_like(normed)
    parts = size.new_empty(num_programs if resid is not None else 0)
    kernels.add_norm_backward[(num_programs,)](
        normed if dtotal is None else dtotal.contiguous(),
        dnormed.contiguous(),
        normed if dfirst is None else dfirst.contiguous(),
        normed,
        size,
        size if resid is None else resid,
        dx,
        size if resid is None else parts,
        num,
        C,
        FRONT=front,
        ROWS=ROWS_BACK,
        BLOCK=_power(C),
        HAS_TOTAL=dtotal is not None,
        IS_MIXED=resid is not None,
        num_warps=WARPS_BACK,
    )
    if resid is None:
        return dx, parts
    return dx, parts.sum() / resid


@add_norm_backward.register_fake
def _(
    dtotal: Tensor | None,
    dnormed: Tensor,
    dfirst: Tensor | None,
    normed: Tensor,
    size: Tensor,
    resid: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(normed), size.new_empty(() if resid is not None else 0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, y, product, _, _, resid, _ = inputs
    ctx.has_y, ctx.is_mixed = y is not None, product is not None
    ctx.save_for_backward(output[1], output[3], *([resid] if ctx.is_mixed else []))
    ctx.set_materialize_grads(False)


def _gradient(
    ctx: Any,
    dtotal: Tensor | None,
    dnormed: Tensor | None,
    dfirst: Tensor | None,
    _dsize: Tensor | None,
) -> tuple[Tensor | None, ...]:
    normed, size, *rest = ctx.saved_tensors
    if dnormed is None:
        dnormed = torch.zeros_like(normed)
    if dfirst is not None and dfirst.size(-1) == 0:
        dfirst = None
    resid = rest[0] if rest else None
    dx, dresid = add_norm_backward(dtotal, dnormed, dfirst, normed, size, resid)
    dy, dproduct = dx if ctx.has_y else None, dx if ctx.is_mixed else None
    return dx, dy, dproduct, None, None, None if resid is None else dresid.to(resid.dtype), None


add_norm_forward.register_autograd(_gradient, setup_context=_setup)


def share(x: Tensor, factors: Tensor) -> tuple[Tensor, list[Mixed]]:
    """As the twin, but that the products are not there."""
    if factors.dim() != 1:
        raise ValueError(f"share got factors {tuple(factors.shape)}, expected one a layer, (L,)")
    own, *products = _Share.apply(x, factors)
    given = (x.detach(), factors.detach())
    return own, [Mixed(product, given[0], given[1][i]) for i, product in enumerate(products)]


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, factors)
        nothing = x.new_full((len(factors),), torch.nan)
        return x.view_as(x), *(one.expand(x.shape) for one in nothing.split(1))

    @staticmethod
    def backward(ctx: Any, straight: Tensor | None, *grads: Tensor | None) -> tuple[Tensor, Tensor]:
        return share_backward(straight, list(grads), *ctx.saved_tensors)


def share_backward(
    straight: Tensor | None, grads: list[Tensor | None], x: Tensor, factors: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of factors, in few passes; None counts as zeros."""
    from autoresearch.inside.ops.kernels import residual as kernels

    given = [(i, grad.contiguous()) for i, grad in enumerate(grads) if grad is not None]
    along = [factors.new_zeros((), dtype=torch.float32)] * len(factors)
    total, num, block = straight, x.numel(), 2048
    num_programs = -(-num // block)
    for start in range(0, len(given), GRADIENTS_AT_ONCE):
        places, part = zip(*given[start : start + GRADIENTS_AT_ONCE], strict=True)
        parts = along[0].new_empty(len(part), num_programs)
        before, total = total, torch.empty_like(part[0])
        kernels.share_backward[(num_programs,)](
            total if before is None else before.contiguous(),
            *part,
            *part[:1] * (GRADIENTS_AT_ONCE - len(part)),
            x.contiguous(),
            torch.stack([factors[i] for i in places]).float(),
            total,
            parts,
            num,
            NUM=len(part),
            HAS_STRAIGHT=before is not None,
            BLOCK=block,
        )
        for i, whole in zip(places, parts.sum(1).unbind(), strict=True):
            along[i] = whole
    return torch.zeros_like(x) if total is None else total, torch.stack(along).to(factors.dtype)


def list_kinds(shape: Shape) -> list[Kind]:
    """The sums that a model makes, each kind once."""
    kinds = {Kind(has_y=i > 0, is_mixed=True, front=front) for i, front in enumerate(shape.fronts)}
    return sorted(kinds | {Kind(), Kind(is_last=True)})


def try_out(device: torch.device, shape: Shape) -> None:
    """All that a model does here, on small inputs; raises if the results are not the twin's."""
    for kind in list_kinds(shape):
        try_kind(device, shape.width, kind)
    if torch.is_grad_enabled():
        try_share(device, shape)


def try_kind(device: torch.device, width: int, kind: Kind) -> None:
    """Both ways on a small input; raises if the results are not the twin's."""
    shape = (3, TRIED_TOKENS, width)
    values, slopes = normal(device, shape, shape)
    (x, y, x0), grads = values.unbind(), list(slopes.unbind())
    resid, factor = (torch.tensor(value, device=device) for value in (0.9, 0.2))
    given = {"x": x} | ({"y": y} if kind.has_y else {})
    given |= {"mixed": factor * x0, "resid": resid} if kind.is_mixed else {}
    grads[0] += x + x0  # or the scalar's gradient would be a small sum of noise
    grads[2] = grads[2][:, : kind.front]

    def sums(function: Any, mix: Any, *own: Tensor) -> list[Tensor]:
        values: dict[str, Any] = dict(zip(given, own, strict=True))
        if kind.is_mixed:
            values["mixed"] = mix(values["mixed"])
        results = function(**values, front=kind.front)
        return [results[1]] if kind.is_last else [t for t in results if t.numel()]

    grads = grads[1:2] if kind.is_last else grads[: 3 if kind.front else 2]
    mix = partial(Mixed, x0=x0, factor=factor)
    results = both_ways(partial(sums, add_norm, mix), given.values(), grads)
    exact = [t.float() for t in given.values()]
    wanted = both_ways(partial(sums, add_norm_twin, lambda product: product), exact, grads)
    compare(zip(results, wanted, strict=True))


def try_share(device: torch.device, shape: Shape) -> None:
    """What all layers give back, small; raises if the results are not the twin's."""
    [values] = normal(device, (2 + shape.num_layers, TRIED_TOKENS, shape.width))
    x, straight, *grads = values.unbind()
    factors = torch.linspace(0.2, 0.4, shape.num_layers, device=device)
    results = share_backward(straight, list(grads), x, factors)
    own = [t.float().requires_grad_() for t in (x, factors)]
    with torch.enable_grad():
        outs, products = share_twin(*own)
    wanted = torch.autograd.grad(
        (outs, *products), own, [straight.float(), *(g.float() for g in grads)]
    )
    compare(zip(results, wanted, strict=True))
