"""Products of normed rows with both sides in float8 on training's way forward, for Hopper.

A normed row of C channels holds nothing beyond sqrt(C), and matrices stay well under 14: constant
factors do, where others look for the largest number first. Gradients are those of the product in
bfloat16, from what was not narrowed, and cuBLAS makes them. Sums are made in the matrix units, of
some 14 bits: exact ones need a second set of registers that large tiles do not have, and take nine
times as long as bfloat16.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoresearch.inside.ops.linear import can_multiply, load_gemm
from autoresearch.inside.ops.trial_call import NUM_ROWS, compare, normal, why_not

LARGEST = 448.0  # of float8 with 4 bits of exponent; what is larger becomes it
WEIGHT_FACTOR = 32.0  # on matrices, whose elements are 0.03 to 0.3; quack_gemm.py divides by it
TILES = (128, 192, 1, 2, 1, 0)  # quack_gemm.tiles


def linear_twin(x: Tensor, weight: Tensor) -> Tensor:
    """The definition: x (..., K), weight (N, K) -> (..., N), as if nothing were rounded on the way
    back.
    """
    exact = F.linear(x, weight)
    return exact + (F.linear(_rounded(x, 1.0), _rounded(weight, WEIGHT_FACTOR)) - exact).detach()


def up_twin(x: Tensor, weight: Tensor) -> Tensor:
    """The definition of the first half of an MLP."""
    return F.relu(linear_twin(x, weight)).square()


def relu2_mlp_twin(x: Tensor, fc: Tensor, proj: Tensor) -> Tensor:
    """The definition of the whole: the second product is not rounded."""
    return F.linear(up_twin(x, fc), proj)


def _rounded(x: Tensor, factor: float) -> Tensor:
    small = (x * factor).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return small.to(x.dtype) / factor


def choose(device: torch.device, width: int) -> str:
    """Empty if products in float8 work here for so many channels, else why not."""
    if torch.cuda.get_device_capability(device)[0] != 9:
        return "needs Hopper"
    if width % 16:
        return "needs a width in multiples of 16"
    return why_not("float8", device, partial(_try, device))


def _try(device: torch.device) -> None:
    """Narrow inputs (trial_call.py); raises if the results are not the twin's."""
    compare([try_product(device), try_up(device)])


def try_product(device: torch.device) -> tuple[Tensor, Tensor]:
    """A narrow product, and the twin's."""
    x, weight = _sample(device)
    return product(x, weight), linear_twin(x, weight)


def try_up(device: torch.device) -> tuple[Tensor, Tensor]:
    """The first half of an MLP, and the twin's."""
    x, weight = _sample(device)
    return up(x, weight), up_twin(x, weight)


def _sample(device: torch.device) -> tuple[Tensor, Tensor]:
    x, weight = normal(device, (NUM_ROWS, 128), (512, 128))
    return x, weight / 10


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """As the twin for rows in bfloat16 on CUDA, of sizes in multiples of 16; else in full."""
    if not can_multiply(x, weight, 16):
        return F.linear(x, weight)
    out: Tensor = linear_forward(x.flatten(0, -2), weight)
    return out.view(*x.shape[:-1], len(weight))


@torch.library.custom_op("autoresearch::float8_linear_forward", mutates_args=())
def linear_forward(x: Tensor, weight: Tensor) -> Tensor:
    """x (M, K), weight (N, K) -> (M, N)."""
    return product(x, weight)


@linear_forward.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((len(x), len(weight)))


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, weight = ctx.saved_tensors
    return grad @ weight, grad.mT @ x


linear_forward.register_autograd(_gradient, setup_context=_setup)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x (M, K), weight (N, K) -> (M, N) in bfloat16."""
    out: Tensor = load_gemm().product_of_float8(*_operands(x, weight), TILES)
    return out


def up(x: Tensor, weight: Tensor) -> Tensor:
    """max(x weight^T, 0)^2, in bfloat16."""
    out: Tensor = load_gemm().up_of_float8(*_operands(x, weight), TILES)
    return out


def _operands(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return narrow(x, 1.0), narrow(weight, WEIGHT_FACTOR).mT


def narrow(x: Tensor, factor: float) -> Tensor:
    """x times factor in float8, contiguous."""
    from autoresearch.inside.ops.kernels import float8 as kernels

    x = x.detach().contiguous()
    out = torch.empty(x.shape, device=x.device, dtype=torch.float8_e4m3fn)
    kernels.narrow[(-(-x.numel() // 4096),)](x, out, x.numel(), factor, BLOCK=4096, num_warps=8)
    return out
