"""C -> 4C -> C with (leaky) ReLU squared, the activation inside the matrix products.

Forward writes only the squared activations; backward needs nothing else, since the slope of
max(h, 0)^2 is twice the root of what was kept. With a leak the square of leak x h is kept below
zero, and the last bit of each square says on which side h was: squares are rounded to the even
numbers of their type above zero, to the odd ones below. Against separate kernels this saves three
passes over the widest tensor of the model. Two backends: `quack` (CuTe DSL, Hopper) and `triton`.
"""

from __future__ import annotations

import importlib
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoresearch.inside.ops.machine import num_processors
from autoresearch.inside.ops.trial_call import compare, once

BACKENDS = ("quack", "triton")  # best first; leave one out to do without it
# quack's tiles: (rows, columns, ping-pong, cluster rows, cluster columns, swap); (): its default
UP_TILES: tuple[int, ...] = ()
DOWN_TILES: tuple[int, ...] = ()
_BITS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
_LAST_BIT = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}  # of each, seen as a float32
WEIGHT_SPLITS = 0  # parts into which quack cuts the sums of weight gradients; 0: cuBLAS does them


def relu2_mlp_twin(x: Tensor, fc: Tensor, proj: Tensor, leak: float = 0.0) -> Tensor:
    """The definition: x (..., C), fc (4C, C), proj (C, 4C); leak: the ReLU's slope below zero."""
    return F.linear(F.leaky_relu(F.linear(x, fc), leak).square(), proj)


def choose(device: torch.device, leak: float) -> tuple[str, str]:
    """The backend for this device, empty if plain torch must do; and why not a better one."""
    if torch.cuda.get_device_capability(device)[0] != 9:
        return "", "needs Hopper"  # the kernels are made for its copy engine and matrix units
    reasons = []
    for backend in BACKENDS:
        try:
            trial = partial(_try, backend, device, leak)
            once(f"mlp {backend} {leak > 0}", device, trial)
        except Exception as error:  # noqa: BLE001 - whatever a library throws, the next is tried
            text = str(error).splitlines() or [""]
            reasons.append(f"{backend}: {type(error).__name__}: {text[0]}"[:120])
            continue
        return backend, "; ".join(reasons)
    return "", "; ".join(reasons)


def _try(backend: str, device: torch.device, leak: float) -> None:
    """A small input both ways (trial_call.py); raises if the results are not plain torch's."""
    compare([(try_up(backend, device, leak), try_up("torch", device, leak))])
    if torch.is_grad_enabled():
        compare([(try_down(backend, device, leak), try_down("torch", device, leak))])


def try_up(backend: str, device: torch.device, leak: float) -> Tensor:
    """The first product of a small input."""
    x, fc = _sample(device, (256, 128), (512, 128))
    return _up(x, fc, backend, leak)


def try_down(backend: str, device: torch.device, leak: float) -> Tensor:
    """What comes back through the second."""
    grad, proj, squares = _sample(device, (256, 128), (128, 512), (256, 512))
    return _down_gradient(grad, proj, squares.square(), backend, leak)


def _sample(device: torch.device, *shapes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"device": device, "dtype": torch.bfloat16, "generator": generator}
    return [torch.randn(shape, **options) / 10 for shape in shapes]


def relu2_mlp(x: Tensor, fc: Tensor, proj: Tensor, backend: str, leak: float = 0.0) -> Tensor:
    """As the twin; `backend` is "quack", "triton" or "torch"."""
    out: Tensor = relu2_forward(x.flatten(0, -2), fc, proj, backend, leak)[0]
    return out.view(x.shape)


@torch.library.custom_op("autoresearch::relu2_forward", mutates_args=())
def relu2_forward(
    x: Tensor, fc: Tensor, proj: Tensor, backend: str, leak: float
) -> tuple[Tensor, Tensor]:
    """Output (N, C) and squared activations (N, 4C)."""
    squares = _up(x, fc, backend, leak)
    return squares @ proj.mT, squares


@relu2_forward.register_fake
def _(x: Tensor, fc: Tensor, proj: Tensor, backend: str, leak: float) -> tuple[Tensor, Tensor]:
    return x.new_empty((len(x), len(proj))), x.new_empty((len(x), len(fc)))


@torch.library.custom_op("autoresearch::relu2_backward", mutates_args=())
def relu2_backward(
    grad: Tensor, x: Tensor, fc: Tensor, proj: Tensor, squares: Tensor, backend: str, leak: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, fc and proj."""
    grad = grad.contiguous()
    hidden = _down_gradient(grad, proj, squares, backend, leak)
    if backend == "quack" and WEIGHT_SPLITS:
        split = load_quack().split_product
        return hidden @ fc, split(hidden, x, WEIGHT_SPLITS), split(grad, squares, WEIGHT_SPLITS)
    return hidden @ fc, hidden.mT @ x, grad.mT @ squares


@relu2_backward.register_fake
def _(
    grad: Tensor, x: Tensor, fc: Tensor, proj: Tensor, squares: Tensor, backend: str, leak: float
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), fc.new_empty(fc.shape), proj.new_empty(proj.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, fc, proj, *ctx.options = inputs
    ctx.save_for_backward(x, fc, proj, output[1])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad: Tensor, _grad_squares: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*relu2_backward(grad, *ctx.saved_tensors, *ctx.options), None, None)


relu2_forward.register_autograd(_gradient, setup_context=_setup)


def _up(x: Tensor, fc: Tensor, backend: str, leak: float = 0.0) -> Tensor:
    """max(x fc^T, 0)^2, or with a leak what is kept then."""
    if backend == "quack":
        quack, operands = load_quack(), (x.detach(), fc.detach().mT)
        options = _tiles(UP_TILES)
        up = (
            quack.leaky_up(*operands, leak=leak, **options)
            if leak
            else quack.up(*operands, **options)
        )
        return up["D"]
    if backend == "triton":
        return gemm_relu2(x, fc, leak=leak)
    hidden = F.linear(x, fc)
    squares = F.leaky_relu(hidden, leak).square_()
    return hide_sides(squares, hidden) if leak else squares


def _down_gradient(
    grad: Tensor, proj: Tensor, squares: Tensor, backend: str, leak: float = 0.0
) -> Tensor:
    """The gradient before the activation: (grad proj) 2 sqrt(squares), with a leak by side."""
    if backend == "quack":
        quack, operands = load_quack(), (grad.detach(), proj.detach(), squares.detach())
        options = _tiles(DOWN_TILES)
        down = quack.leaky_down_gradient if leak else quack.down_gradient
        return down(*operands, **options, **({"leak": leak} if leak else {}))["D"]
    if backend == "triton":
        return gemm_relu2(grad, proj.mT.contiguous(), squares, leak)
    return _down(grad, proj, squares, leak)


def _down(grad: Tensor, proj: Tensor, squares: Tensor, leak: float = 0.0) -> Tensor:
    slope = squares.sqrt().mul_(2)
    if leak:
        is_odd = squares.view(_BITS[squares.dtype]) & 1
        slope = torch.where(is_odd == 1, -leak * slope, slope)
    return (grad @ proj).mul_(slope)


def hide_sides(squares: Tensor, hidden: Tensor) -> Tensor:
    """Squares whose last bit is set where `hidden` was below zero, else cleared."""
    bits = squares.view(_BITS[squares.dtype])
    return ((bits & -2) | (hidden < 0)).view(squares.dtype)


def _tiles(shape: tuple[int, ...]) -> dict[str, Any]:
    """Options of a call: tiles of this shape, without a search."""
    return {"tuned": False, "config": load_quack().tiles(*shape) if shape else None}


@cache
def load_quack() -> Any:
    """The epilogues; what they compile is kept where QUACK_CACHE_DIR says."""
    return importlib.import_module("autoresearch.inside.ops.quack_relu2")


def gemm_relu2(a: Tensor, b: Tensor, squares: Tensor | None = None, leak: float = 0.0) -> Tensor:
    """One product of a (M, K) and b (N, K), and one of two epilogues.

    Without `squares` max(a b^T, 0)^2; with them (a b^T) 2 sqrt(squares); or both with a leak.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    from autoresearch.inside.ops.kernels import mlp as kernels

    (M, K), N = a.shape, len(b)
    out = torch.empty((M, N), device=a.device, dtype=a.dtype)
    rows, columns, depth = 128, 256, 64
    half = [rows, columns // 2]  # the epilogue works on halves: less shared memory, more stages
    num_programs = num_processors(a.device)
    kernels.gemm_relu2[(num_programs,)](
        TensorDescriptor.from_tensor(a.contiguous(), [rows, depth]),
        TensorDescriptor.from_tensor(b.contiguous(), [columns, depth]),
        TensorDescriptor.from_tensor(out, half),
        TensorDescriptor.from_tensor(out if squares is None else squares, half),
        M,
        N,
        K,
        num_programs,
        leak,
        IS_BACKWARD=squares is not None,
        IS_LEAKY=leak > 0,
        LAST_BIT=_LAST_BIT[a.dtype],
        ROWS=rows,
        COLUMNS=columns,
        DEPTH=depth,
        num_warps=8,
        num_stages=3,
    )
    return out
