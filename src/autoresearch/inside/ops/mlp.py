"""C -> 4C -> C with ReLU squared, the activation inside the matrix products.

Forward writes only the squared activations; backward needs nothing else, since the slope of
max(h, 0)^2 is twice the root of what was kept. Against separate kernels this saves three passes
over the widest tensor of the model. Backends: `quack` (CuTe DSL, Hopper) and `triton`; `float8` is
quack with the first product in float8 (float8.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoresearch.inside.ops import float8
from autoresearch.inside.ops.linear import aligned, load_gemm
from autoresearch.inside.ops.machine import num_processors
from autoresearch.inside.ops.trial_call import NUM_ROWS, compare, normal, why_not

BACKENDS = ("quack", "triton")  # best first; leave one out to do without it


def relu2_mlp_twin(x: Tensor, fc: Tensor, proj: Tensor) -> Tensor:
    """The definition: x (..., C), fc (4C, C), proj (C, 4C)."""
    return F.linear(F.relu(F.linear(x, fc)).square(), proj)


def choose(device: torch.device) -> tuple[str, str]:
    """The backend for this device, empty if plain torch must do; and why not a better one."""
    if torch.cuda.get_device_capability(device)[0] != 9:
        return "", "needs Hopper"  # the kernels are made for its copy engine and matrix units
    reasons: list[str] = []
    for backend in BACKENDS:
        reason = why_not(f"mlp {backend}", device, partial(_try, backend, device))
        if not reason:
            return backend, "; ".join(reasons)
        reasons.append(f"{backend}: {reason}"[:120])
    return "", "; ".join(reasons)


def _try(backend: str, device: torch.device) -> None:
    """Narrow inputs both ways (trial_call.py); raises if the results are not plain torch's."""
    compare([(try_up(backend, device), try_up("torch", device))])
    if torch.is_grad_enabled():
        compare([(try_down(backend, device), try_down("torch", device))])


def try_up(backend: str, device: torch.device) -> Tensor:
    """The first product of a narrow input."""
    x, fc = normal(device, (NUM_ROWS, 128), (512, 128))
    return _up(x / 10, fc / 10, backend)


def try_down(backend: str, device: torch.device) -> Tensor:
    """What comes back through the second."""
    shapes = ((NUM_ROWS, 128), (128, 512), (NUM_ROWS, 512))
    grad, proj, roots = (t / 10 for t in normal(device, *shapes))
    return _down_gradient(grad, proj, roots.square(), backend)


def relu2_mlp(x: Tensor, fc: Tensor, proj: Tensor, backend: str) -> Tensor:
    """As the twin; `backend` is "float8" (for normed rows), "quack", "triton" or "torch"."""
    out: Tensor = relu2_forward(x.flatten(0, -2), fc, proj, backend)[0]
    return out.view(x.shape)


@torch.library.custom_op("autoresearch::relu2_forward", mutates_args=())
def relu2_forward(x: Tensor, fc: Tensor, proj: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Output (N, C) and squared activations (N, 4C)."""
    squares = _up(x, fc, backend)
    return squares @ proj.mT, squares


@relu2_forward.register_fake
def _(x: Tensor, fc: Tensor, proj: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return x.new_empty((len(x), len(proj))), x.new_empty((len(x), len(fc)))


@torch.library.custom_op("autoresearch::relu2_backward", mutates_args=())
def relu2_backward(
    grad: Tensor, x: Tensor, fc: Tensor, proj: Tensor, squares: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, fc and proj."""
    grad = grad.contiguous()
    hidden = _down_gradient(grad, proj, squares, backend)
    return hidden @ fc, hidden.mT @ x, grad.mT @ squares


@relu2_backward.register_fake
def _(
    grad: Tensor, x: Tensor, fc: Tensor, proj: Tensor, squares: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), fc.new_empty(fc.shape), proj.new_empty(proj.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, fc, proj, ctx.backend = inputs
    ctx.save_for_backward(x, fc, proj, output[1])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad: Tensor, _grad_squares: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*relu2_backward(grad, *ctx.saved_tensors, ctx.backend), None)


relu2_forward.register_autograd(_gradient, setup_context=_setup)


def _up(x: Tensor, fc: Tensor, backend: str) -> Tensor:
    """max(x fc^T, 0)^2."""
    if backend == "float8":
        return float8.up(x, fc)
    if backend == "quack":
        operands = (aligned(x.detach()), aligned(fc.detach().mT))
        return load_gemm().up(*operands, tuned=False)["D"]
    if backend == "triton":
        return gemm_relu2(x, fc)
    return F.relu(F.linear(x, fc)).square_()


def _down_gradient(grad: Tensor, proj: Tensor, squares: Tensor, backend: str) -> Tensor:
    """The gradient before the activation: (grad proj) 2 sqrt(squares)."""
    if backend in ("float8", "quack"):
        operands = tuple(aligned(t.detach()) for t in (grad, proj, squares))
        return load_gemm().down_gradient(*operands, tuned=False)["D"]
    if backend == "triton":
        return gemm_relu2(grad, proj.mT.contiguous(), squares)
    return (grad @ proj).mul_(squares.sqrt().mul_(2))


def gemm_relu2(a: Tensor, b: Tensor, squares: Tensor | None = None) -> Tensor:
    """One product of a (M, K) and b (N, K), and one of two epilogues.

    Without `squares` max(a b^T, 0)^2; with them (a b^T) 2 sqrt(squares).
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
        IS_BACKWARD=squares is not None,
        ROWS=rows,
        COLUMNS=columns,
        DEPTH=depth,
        num_warps=8,
        num_stages=3,
    )
    return out
