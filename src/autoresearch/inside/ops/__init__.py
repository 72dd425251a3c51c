"""Fast operators for train.py on CUDA, each beside a plain torch twin that tests compare it with.

train.py is complete without this package: it has plain versions of all of them, and calls `install`
to replace what this machine has something better for, and what nobody has edited (edited.py). A
missing library, an older chip or a kernel that fails its trial call means the next choice, never an
error. Importing this package imports torch alone; triton, FlashAttention and quack come with the
operators that use them.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from autoresearch.inside.ops import ahead, heads, linear, residual, rotary, softcap_ce, table
from autoresearch.inside.ops import attention as _attention
from autoresearch.inside.ops import float8 as _float8
from autoresearch.inside.ops import mlp as _mlp
from autoresearch.inside.ops.edited import find_edited
from autoresearch.inside.ops.shape import Shape
from autoresearch.inside.ops.trial_call import once

# modules of Triton kernels
KERNELS = ("float8", "mlp", "residual", "rotary", "softcap_ce", "table")


class Operators(Protocol):
    """What train.py lets us replace; `names` tells the reader what is in use."""

    split_heads: Any
    attend: Any
    attend_heads: Any
    window: Any
    find_documents: Any
    add_norm: Any
    share: Any
    linear: Any
    linear_normed: Any
    mlp: Any
    lookup: Any
    head_loss: Any
    softcap: Any
    names: dict[str, str]


def install(
    operators: Operators,
    device: torch.device,
    shape: Shape,
    *,
    attention: str,
    softcap: float,
    gain: float,
) -> None:
    """Replace operators by faster ones that work on this device.

    Args:
        operators: an object with the attributes of the protocol above, changed in place.
        device: a CUDA device.
        shape: the sizes of the model.
        attention: rung of the attention ladder, or "auto" for the best that works.
        softcap: the bound of the logits.
        gain: factor on normed queries and keys.
    """
    edited = find_edited(operators, shape, softcap=softcap, gain=gain)
    operators.names |= dict.fromkeys(sorted(edited), "torch (edited)")
    ahead.compile_all(device, shape, is_scored=not torch.is_grad_enabled())
    name = "sdpa (edited)"
    if "attend" not in edited:
        sizes = (shape.head_dim, shape.context, shape.windows, shape.has_documents)
        attend, name = _attention.choose(attention, device, *sizes)
        if attend is not None:
            operators.attend, operators.find_documents = attend, _attention.finder(attend)
    operators.names["attend"] = name
    if torch.cuda.get_device_capability(device) < (8, 0) or not _has_triton():
        return
    multiply = _install_products(operators, device, shape, edited)
    if "head_loss" not in edited:
        operators.head_loss = partial(softcap_ce.head_loss, cap=softcap, linear=multiply)
        operators.names["loss"] = "triton"
    works = partial(once, "softcap", device, partial(softcap_ce.try_out, device))
    if "softcap" not in edited and _is_fine(operators, "softcap", works):
        operators.softcap = partial(softcap_ce.softcap, cap=softcap)
    if "lookup" not in edited:
        operators.lookup = table.lookup
        operators.names["lookup"] = "triton"
    if "split_heads" not in edited and rotary.is_supported(shape.head_dim):
        operators.split_heads = partial(rotary.split_heads, gain=gain)
        operators.names["rotary"] = "triton"
        if name == "fa4" and heads.ENABLED and "attend_heads" not in edited:
            works = partial(heads.try_out, device, shape)
            what = f"heads {shape}, from sums {rotary.list_sums(device, shape)}"
            if _is_fine(operators, "heads", partial(once, what, device, works)):
                operators.attend_heads = partial(heads.attend_heads, gain=gain)
                operators.window = heads.as_tensor
    works = partial(once, f"residual {shape}", device, partial(residual.try_out, device, shape))
    if residual.ENABLED and "add_norm" not in edited and _is_fine(operators, "residual", works):
        operators.add_norm, operators.share = residual.add_norm, residual.share
    if "mlp" in edited:
        return
    backend, reason = _mlp.choose(device)
    operators.names["mlp"] = f"{backend or 'torch'} ({reason})" if reason else backend
    if backend == "quack" and multiply is _float8.linear:
        backend = "float8"
    if backend:
        operators.mlp = partial(_mlp.relu2_mlp, backend=backend)


def _install_products(
    operators: Operators, device: torch.device, shape: Shape, edited: set[str]
) -> Callable[..., torch.Tensor]:
    """Products of activations and weights. Returns the one for normed rows."""
    reason = linear.choose(device, shape) if linear.ENABLED else "off"
    multiply = F.linear if reason else linear.linear
    if "linear" not in edited:
        operators.linear = multiply
        operators.names["linear"] = f"torch ({reason})" if reason else "quack"
    if shape.has_float8 and torch.is_grad_enabled():  # what is only scored need not be rounded
        is_normed = "add_norm" not in edited  # what float8 can hold of it
        reason = _float8.choose(device, shape.width) if is_normed else "add_norm is edited"
        operators.names["float8"] = f"off ({reason})" if reason else "quack"
        multiply = multiply if reason else _float8.linear
    if "linear_normed" not in edited:
        operators.linear_normed = multiply
    return multiply


def _is_fine(operators: Operators, part: str, trial: Callable[[], None]) -> bool:
    """Whether a trial call goes through; writes down what came of it."""
    try:
        trial()
    except Exception as error:  # noqa: BLE001 - whatever a library throws, plain torch remains
        operators.names[part] = f"torch ({type(error).__name__}: {error})".splitlines()[0][:120]
        return False
    operators.names[part] = "triton"
    return True


def preload() -> None:
    """Import what `install` and train.py will want, for a process that has time now.

    Touches no device. Dynamo is wanted by the first call of an operator, compiled or not.
    """
    # tvm_ffi asks whether there is a card when it is imported: by default that starts CUDA, and
    # then no child of this process could use it
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    if not Path("/dev/nvidiactl").exists():
        return
    names = ["torch._dynamo", "torch._inductor.compile_fx", "cuda.bindings.driver"]
    names += [f"{__name__}.kernels.{name}" for name in KERNELS]
    for name in (*names, "flash_attn.cute.interface"):
        with suppress(Exception):  # whatever is missing or broken: `install` finds out
            importlib.import_module(name)
    with suppress(Exception):
        linear.load_gemm()
    ahead.stand_by()


def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True
