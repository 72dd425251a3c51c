"""x times a matrix, both ways, where quack's products are faster than cuBLAS's on Hopper.

With some 500 channels a product ends before its pipeline is full, and writes as much as it
multiplies: two tiles in turn, one written while the other is multiplied, take 2 to 12 % less time.
With 768 one of them is still faster alone, but a step no more. Weight gradients, long sums, stay
with cuBLAS.
"""

from __future__ import annotations

import importlib
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoresearch.inside.ops.shape import Shape
from autoresearch.inside.ops.trial_call import NUM_ROWS, compare, normal, why_not

ENABLED = True  # False: cuBLAS
MAX_WIDTH = 640  # of models; wider ones take cuBLAS's
# quack's tiles (quack_gemm.tiles): in general, and for a short sum and many columns
TILES = (128, 128, 1, 2, 1, 0)
WIDE_TILES = (128, 192, 1, 2, 1, 0)


def linear_twin(x: Tensor, weight: Tensor) -> Tensor:
    """The definition: x (..., K), weight (N, K) -> (..., N)."""
    return F.linear(x, weight)


def choose(device: torch.device, shape: Shape) -> str:
    """Empty if `linear` works here, else why not."""
    if torch.cuda.get_device_capability(device)[0] != 9:
        return "needs Hopper"
    if not list_kinds(shape, is_scored=True):
        return f"wider than {MAX_WIDTH}"
    return why_not(f"linear {shape}", device, partial(_try, device, shape))


def _try(device: torch.device, shape: Shape) -> None:
    """Each kind once (trial_call.py); raises if the results are not plain torch's."""
    kinds = list_kinds(shape, is_scored=not torch.is_grad_enabled())
    compare(try_product(device, *kind) for kind in kinds)


def list_kinds(shape: Shape, *, is_scored: bool) -> list[tuple[int, int, bool]]:
    """Products of the model, one a kernel: summed channels, columns, whether on the way back.

    The way back multiplies by the matrix as it lies, the way forward by its transpose. None for a
    wide model.
    """
    if shape.width > MAX_WIDTH:
        return []
    joined = (shape.num_heads + 2 * shape.kv_heads) * shape.head_dim
    ways = [(shape.width, columns, False) for columns in (joined, shape.width)]
    if not is_scored:
        ways += [(columns, shape.width, True) for columns in (joined, shape.width)]
    return list({(_tiles(K, N), is_back): (K, N, is_back) for K, N, is_back in ways}.values())


def try_product(
    device: torch.device, channels: int, columns: int, is_back: bool
) -> tuple[Tensor, Tensor]:
    """A product, and cuBLAS's."""
    matrix = (channels, columns) if is_back else (columns, channels)
    x, b = normal(device, (NUM_ROWS, channels), matrix)
    b = b if is_back else b.mT
    return multiply(x, b), x @ b


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """As the twin, which it is but for rows in bfloat16 on CUDA, of sizes in multiples of 8."""
    if not can_multiply(x, weight, 8):
        return F.linear(x, weight)
    out: Tensor = linear_forward(x.flatten(0, -2), weight)
    return out.view(*x.shape[:-1], len(weight))


def can_multiply(x: Tensor, weight: Tensor, multiple: int) -> bool:
    """Whether x (..., K) is rows for quack, and the sizes of weight (N, K) divide by `multiple`."""
    N, K = weight.shape
    is_rows = x.device.type == "cuda" and x.dtype == torch.bfloat16 and x.dim() > 1
    return bool(is_rows and x.numel() and N % multiple == K % multiple == 0)


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) times b (K, N) by quack."""
    return load_gemm().product(aligned(a), aligned(b), _tiles(*b.shape))


def aligned(matrix: Tensor) -> Tensor:
    """The matrix, copied unless it lies as Hopper's copy engine reads it.

    That is rows or columns without gaps, which begin at multiples of 16 bytes.
    """
    small, large = sorted(matrix.stride())
    is_fine = small == 1 and large % 8 == 0 and matrix.data_ptr() % 16 == 0
    return matrix if is_fine else matrix.clone(memory_format=torch.contiguous_format)


def _tiles(channels: int, columns: int) -> tuple[int, ...]:
    is_wide = channels <= 512 and columns > channels and columns % WIDE_TILES[1] == 0
    return WIDE_TILES if is_wide else TILES


@cache
def load_gemm() -> Any:
    """quack_gemm.py; what it compiles is kept where QUACK_CACHE_DIR says."""
    return importlib.import_module("autoresearch.inside.ops.quack_gemm")


@torch.library.custom_op("autoresearch::linear_forward", mutates_args=())
def linear_forward(x: Tensor, weight: Tensor) -> Tensor:
    """x (M, K), weight (N, K) -> (M, N)."""
    return multiply(x, weight.mT)


@linear_forward.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((len(x), len(weight)))


@torch.library.custom_op("autoresearch::linear_backward", mutates_args=())
def linear_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight."""
    grad = grad.contiguous()
    return multiply(grad, weight), grad.mT @ x


@linear_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    out: tuple[Tensor, Tensor] = linear_backward(grad, *ctx.saved_tensors)
    return out


linear_forward.register_autograd(_gradient, setup_context=_setup)
