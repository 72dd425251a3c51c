"""Head, softcap and cross-entropy in one pass: float32 logits are never stored in training.

A chunk of bfloat16 logits comes out of the matrix product; one kernel reads each row once, writes
its loss, and overwrites the row with the gradient of the mean loss; two more products turn that
into gradients of hidden states and head. Bytes: one read and one write of bfloat16 logits beside
the three products. Where logits are to be shown, one kernel caps them: one read of bfloat16, one
write of float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoresearch.inside.ops.machine import num_processors
from autoresearch.inside.ops.shape import Shape
from autoresearch.inside.ops.trial_call import compare

CHUNK_TOKENS = 2**16  # logits held at once: 1 GiB at a vocabulary of 8192
PROGRAMS_A_PROCESSOR = 2  # of 16 warps each: as many as registers allow
FAST_TANH = True  # by one instruction, off by 2^-11 of its value: bfloat16 logits are off by 2^-9
MAX_CAP = 70.0  # the kernel takes exp(logits) unshifted; a float32 holds the sum up to here


def softcap_twin(logits: Tensor, cap: float) -> Tensor:
    """The definition: smooth clipping to +-cap, in float32."""
    return cap * torch.tanh(logits.float() / cap)


def softcap(logits: Tensor, cap: float) -> Tensor:
    """As the twin, which it is on a CPU and where gradients are wanted; (..., V) contiguous."""
    if logits.device.type == "cpu" or torch.is_grad_enabled():
        return softcap_twin(logits, cap)
    return shown(logits, cap)


def shown(logits: Tensor, cap: float) -> Tensor:
    """The kernel's part of `softcap`."""
    from autoresearch.inside.ops.kernels import softcap_ce as kernels

    logits = logits.contiguous()
    out = torch.empty(logits.shape, device=logits.device, dtype=torch.float32)
    kernels.softcap[(-(-out.numel() // 2048),)](logits, out, out.numel(), cap, BLOCK=2048)
    return out


def try_out(device: torch.device) -> None:
    """`shown` on a small input, so that it is compiled too; raises if it is not the twin's."""
    logits = torch.linspace(-60.0, 60.0, 4096, device=device).bfloat16()
    compare([(shown(logits, 15.0), softcap_twin(logits, 15.0))])


def head_loss_twin(x: Tensor, head: Tensor, targets: Tensor, cap: float) -> Tensor:
    """The definition, in the precision of its inputs: x (..., C), head (V, C), targets (...)."""
    logits = cap * torch.tanh(F.linear(x, head.to(x.dtype)) / cap)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def head_loss(
    x: Tensor, head: Tensor, targets: Tensor, cap: float, linear: Callable[..., Tensor] = F.linear
) -> Tensor:
    """Mean cross-entropy of softcapped logits in nats; the twin on a CPU or with a wide cap.

    `linear` makes the logits.
    """
    if x.device.type == "cpu" or cap > MAX_CAP:
        return head_loss_twin(x, head, targets, cap)
    loss: Tensor = _HeadLoss.apply(x.flatten(0, -2), head, targets.flatten(), cap, linear)
    return loss


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        head: Tensor,
        targets: Tensor,
        cap: float,
        linear: Callable[..., Tensor],
    ) -> Tensor:
        weight = head.to(x.dtype)
        losses = torch.empty(len(x), device=x.device, dtype=torch.float32)
        dx, dhead = torch.empty_like(x), torch.zeros_like(head, dtype=torch.float32)
        for start in range(0, len(x), CHUNK_TOKENS):
            part = slice(start, min(start + CHUNK_TOKENS, len(x)))
            logits = linear(x[part], weight)
            loss_and_gradient(logits, targets[part], losses[part], cap, 1.0 / len(x))
            torch.mm(logits, weight, out=dx[part])
            dhead += logits.mT @ x[part]
        ctx.save_for_backward(dx, dhead)
        ctx.is_spent = False
        return losses.sum() / len(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx, dhead = ctx.saved_tensors
        if ctx.is_spent:
            raise RuntimeError("head_loss got a second backward pass: it has the gradient for one")
        ctx.is_spent = True
        return rescale(dx, grads[0]), dhead * grads[0], None, None, None


def rescale(x: Tensor, factor: Tensor) -> Tensor:
    """x times a scalar, in place. It mostly is 1, which only the device knows: then x stays."""
    from autoresearch.inside.ops.kernels import softcap_ce as kernels

    kernels.rescale[(-(-x.numel() // 4096),)](x, factor, x.numel(), BLOCK=4096)
    return x


def loss_and_gradient(
    logits: Tensor, targets: Tensor, losses: Tensor, cap: float, scale: float
) -> None:
    """Write the loss of each row, and over the row the gradient of `scale` times it.

    Args:
        logits: (N, V) raw, overwritten with the gradient.
        targets: (N,).
        losses: (N,) float32, written.
        cap: the bound of the logits.
        scale: factor on the gradient.
    """
    import triton

    from autoresearch.inside.ops.kernels import softcap_ce as kernels

    num_rows, vocab = logits.shape
    is_cuda = logits.device.type == "cuda"
    block = triton.next_power_of_2(vocab)
    warps = max(4, min(32, block // 512))
    options = {"maxnreg": 64} if is_cuda and warps >= 16 else {}  # or fewer programs would fit
    num_at_once = num_processors(logits.device) * (PROGRAMS_A_PROCESSOR if warps <= 16 else 1)
    num_programs = min(num_rows, num_at_once)
    kernels.softcap_ce[(num_programs,)](
        logits,
        targets,
        losses,
        logits.stride(0),
        num_rows,
        vocab,
        cap,
        scale,
        BLOCK_V=block,
        IS_FAST=FAST_TANH and is_cuda,
        num_warps=warps,
        **options,
    )


def call_kernel(device: torch.device, shape: Shape) -> None:
    """Both kernels of training on a small input."""
    logits = torch.zeros((64, shape.vocab_size), device=device, dtype=torch.bfloat16)
    targets, losses = (
        torch.zeros_like(logits[:, 0], dtype=torch.int64),
        logits.new_empty(64).float(),
    )
    loss_and_gradient(logits, targets, losses, 15.0, 0.5)
    rescale(logits, losses[:1].fill_(1.0))
