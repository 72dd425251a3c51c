"""The residual stream: sums and the norm after them in one kernel, and one sum of many gradients.

A layer adds to the stream twice and norms it twice. Forward, one kernel reads what is added and
writes sum and normed sum; backward, one kernel turns both gradients into that of what was added,
and sums up the gradients of the two scalars on the way. Backward needs the normed sum and a length
a token: the sum is their product and is not kept. `share` gives a tensor to all layers and adds
their gradients up at the end: (n + 1) passes over the bytes, not 3 (n - 1).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from autoresearch.inside.ops.shape import Shape
from autoresearch.inside.ops.trial_call import both_ways, compare

ENABLED = True  # False: plain torch, compiled
SHARE = True  # False: autograd adds the gradients one by one
ROWS, WARPS = 8, 4  # tokens and warps a program, forward
ROWS_BACK, WARPS_BACK = 4, 4  # backward
MAX_SUMMANDS = 10  # that the kernel of `share` takes at once
_LEAST_RESID = 1e-3  # the scalar's gradient is a quotient: below this it is damped

TRIED_TOKENS = 64  # of a trial call; Triton compiles another kernel unless 16 divides it

Sums = tuple[Tensor, Tensor, Tensor]


class Kind(NamedTuple):
    """What a sum of the model is made of, and what of it is used."""

    has_y: bool = True
    has_x0: bool = False
    front: int = 0
    is_last: bool = False  # the sum before the norm has no gradient


def add_norm_twin(
    x: Tensor,
    y: Tensor | None = None,
    x0: Tensor | None = None,
    resid: Tensor | None = None,
    mix: Tensor | None = None,
    front: int = 0,
) -> Sums:
    """The definition: x + y, or resid (x + y) + mix x0; that normed; the first channels of this.

    Args:
        x: (..., C).
        y: likewise, added; or None.
        x0: likewise, mixed in; or None, then `resid` and `mix` are None too.
        resid: a scalar.
        mix: a scalar.
        front: how many channels the third result has.
    """
    if y is not None:
        x = x + y
    if x0 is not None:
        x = resid * x + mix * x0
    normed = F.rms_norm(x, (x.size(-1),), eps=1e-6)
    return x, normed, normed[..., :front]


def add_norm(
    x: Tensor,
    y: Tensor | None = None,
    x0: Tensor | None = None,
    resid: Tensor | None = None,
    mix: Tensor | None = None,
    front: int = 0,
) -> Sums:
    """As the twin, which it is on a CPU."""
    if x.device.type == "cpu":
        return add_norm_twin(x, y, x0, resid, mix, front)
    total, normed, first, _ = add_norm_forward(x, y, x0, resid, mix, front)
    return total, normed, first


@torch.library.custom_op("autoresearch::add_norm_forward", mutates_args=())
def add_norm_forward(
    x: Tensor,
    y: Tensor | None,
    x0: Tensor | None,
    resid: Tensor | None,
    mix: Tensor | None,
    front: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum, normed sum, its first channels, and the length (...) in float32 that parts the two."""
    from autoresearch.inside.ops.kernels import residual as kernels

    x, C = x.contiguous(), x.size(-1)
    total, normed, first, size = _outputs(x, front)
    num = size.numel()
    kernels.add_norm[(-(-num // ROWS),)](
        x,
        x if y is None else y.contiguous(),
        x if x0 is None else x0.contiguous(),
        x if resid is None else resid,
        x if mix is None else mix,
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
        HAS_X0=x0 is not None,
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
    x0: Tensor | None,
    resid: Tensor | None,
    mix: Tensor | None,
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
    x0: Tensor | None,
    resid: Tensor | None,
    mix: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (and y), of x0, and (2,) of the scalars; the last two are empty without x0."""
    from autoresearch.inside.ops.kernels import residual as kernels

    C, num, front = normed.size(-1), size.numel(), 0 if dfirst is None else dfirst.size(-1)
    num_programs = -(-num // ROWS_BACK)
    dx = torch.empty_like(normed)
    dx0 = normed.new_empty(normed.shape if x0 is not None else (0,))
    parts = size.new_empty((2, num_programs) if x0 is not None else (0,))
    kernels.add_norm_backward[(num_programs,)](
        normed if dtotal is None else dtotal.contiguous(),
        dnormed.contiguous(),
        normed if dfirst is None else dfirst.contiguous(),
        normed,
        size,
        normed if x0 is None else x0.contiguous(),
        size if resid is None else resid,
        size if mix is None else mix,
        dx,
        dx0 if x0 is not None else dx,
        parts if x0 is not None else size,
        num,
        C,
        num_programs,
        FRONT=front,
        ROWS=ROWS_BACK,
        BLOCK=_power(C),
        HAS_TOTAL=dtotal is not None,
        HAS_X0=x0 is not None,
        num_warps=WARPS_BACK,
    )
    if resid is None or mix is None:
        return dx, dx0, parts
    along, along0 = parts.sum(1).unbind()  # products of the gradient with the sum, and with x0
    small = resid.abs() < _LEAST_RESID
    dresid = (along - mix * along0) / torch.where(small, _LEAST_RESID, resid)
    return dx, dx0, torch.stack((dresid, along0))


@add_norm_backward.register_fake
def _(
    dtotal: Tensor | None,
    dnormed: Tensor,
    dfirst: Tensor | None,
    normed: Tensor,
    size: Tensor,
    x0: Tensor | None,
    resid: Tensor | None,
    mix: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    has_x0 = x0 is not None
    dx0 = normed.new_empty(normed.shape if has_x0 else (0,))
    return torch.empty_like(normed), dx0, size.new_empty((2,) if has_x0 else (0,))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, y, x0, resid, mix, _ = inputs
    ctx.has_y, ctx.has_x0 = y is not None, x0 is not None
    ctx.save_for_backward(output[1], output[3], *((x0, resid, mix) if ctx.has_x0 else ()))
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
    grads = (dtotal, dnormed, dfirst, normed, size)
    dx, dx0, scalars = add_norm_backward(*grads, *(rest or (None, None, None)))
    dy = dx if ctx.has_y else None
    if not rest:
        return dx, dy, *(4 * [None])
    dresid, dmix = (part.to(scalar.dtype) for part, scalar in zip(scalars, rest[1:], strict=True))
    return dx, dy, dx0, dresid, dmix, None


add_norm_forward.register_autograd(_gradient, setup_context=_setup)


def share(x: Tensor, num: int) -> list[Tensor]:
    """`num` times the same tensor; the gradients are added up at once, in float32."""
    return list(_Share.apply(x, num))


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, num: int) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(x.view_as(x) for _ in range(num))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        return add_up([grad for grad in grads if grad is not None]), None


def add_up(summands: list[Tensor]) -> Tensor | None:
    """The sum of tensors of one shape, in few passes; None of none."""
    from autoresearch.inside.ops.kernels import residual as kernels

    if not summands:
        return None
    summands = [summand.contiguous() for summand in summands]
    while len(summands) > 1:
        part, summands = summands[:MAX_SUMMANDS], summands[MAX_SUMMANDS:]
        total, num = torch.empty_like(part[0]), part[0].numel()
        padded = part + part[:1] * (MAX_SUMMANDS - len(part))
        kernels.add_up[(-(-num // 2048),)](*padded, total, num, NUM=len(part), BLOCK=2048)
        summands = [total, *summands]
    return summands[0]


def list_kinds(shape: Shape) -> list[Kind]:
    """The sums that a model makes, each kind once."""
    kinds = {Kind(has_y=i > 0, has_x0=True, front=front) for i, front in enumerate(shape.fronts)}
    return sorted(kinds | {Kind(), Kind(is_last=True)})


def try_out(device: torch.device, shape: Shape) -> None:
    """All that a model does here, on small inputs; raises if the results are not the twin's."""
    for kind in list_kinds(shape):
        try_kind(device, shape.width, kind)
    if torch.is_grad_enabled():
        try_sum(device, shape)


def try_kind(device: torch.device, width: int, kind: Kind) -> None:
    """Both ways on a small input; raises if the results are not the twin's."""
    generator = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"device": device, "dtype": torch.bfloat16, "generator": generator}
    inputs = list(torch.randn((3, TRIED_TOKENS, width), **options).unbind())
    inputs += [torch.tensor(value, device=device) for value in (0.9, 0.2)]
    x, y, x0, *scalars = inputs
    given = {"x": x} | ({"y": y} if kind.has_y else {})
    given |= {"x0": x0, "resid": scalars[0], "mix": scalars[1]} if kind.has_x0 else {}
    grads = list(torch.randn((3, TRIED_TOKENS, width), **options).unbind())
    grads[0] += x + x0  # or the scalars' gradients would be small sums of noise
    grads[2] = grads[2][:, : kind.front]

    def sums(function: Any, *own: Tensor) -> list[Tensor]:
        results = function(**dict(zip(given, own, strict=True)), front=kind.front)
        return [results[1]] if kind.is_last else [t for t in results if t.numel()]

    grads = grads[1:2] if kind.is_last else grads[: 3 if kind.front else 2]
    results = both_ways(partial(sums, add_norm), given.values(), grads)
    wanted = both_ways(partial(sums, add_norm_twin), [t.float() for t in given.values()], grads)
    compare(zip(results, wanted, strict=True))


def try_sum(device: torch.device, shape: Shape) -> None:
    """The gradients of all users of one tensor, small; raises if the result is not their sum."""
    generator = torch.Generator(device).manual_seed(0)
    size = (1 + shape.num_layers, TRIED_TOKENS, shape.width)
    summands = torch.randn(size, device=device, dtype=torch.bfloat16, generator=generator)
    compare([(add_up(list(summands.unbind())), summands.float().sum(0))])
