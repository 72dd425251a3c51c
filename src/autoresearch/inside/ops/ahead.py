"""Kernels that take seconds each to compile, compiled side by side before the first is needed.

FlashAttention, quack and Triton compile a kernel where it is first called, one after the other.
Here a helper is forked off a process that has imported all of that and touched no device (CUDA does
not survive a fork); when the model is built, the helper forks one child for each call that compiles
something, with the sizes that the model will call it with. What the children compile is on disk
then, where the calls that count find it. Nothing else comes of them: what fails in a child is found
out, and told, by the call that counts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from autoresearch.inside.ops import fa4, float8, linear, mlp, residual, rotary, softcap_ce, table
from autoresearch.inside.ops.shape import Shape
from autoresearch.system.procs import die_with_parent

PATIENCE_S = 60.0  # then everything is compiled in turn, as without a helper
LIBRARY = "flash_attn.cute.interface"
FOLDER = "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"  # where the first kernels of all appear

_helper: Connection | None = None


def stand_by() -> None:
    """Fork the helper, which waits for `compile_all`.

    Nothing without FlashAttention 4, or if a device is in use already.
    """
    global _helper
    if LIBRARY not in sys.modules or torch.cuda.is_initialized():
        return
    ours, theirs = Pipe()
    if os.fork() == 0:
        with suppress(BaseException):
            die_with_parent()
            ours.close()
            _compile(*theirs.recv())
            theirs.send("done")
        os._exit(0)
    theirs.close()
    _helper = ours


def compile_all(device: torch.device, shape: Shape, *, is_scored: bool) -> None:
    """Compile what a model of this shape will call, where no cache has it yet; see `list_calls`."""
    global _helper
    helper, _helper = _helper, None
    if helper is None:
        return
    with helper, suppress(OSError, EOFError):  # closed without a word, the helper ends
        if not _has_kernels():
            helper.send((device, shape, is_scored))
            helper.poll(PATIENCE_S)


def list_calls(device: torch.device, shape: Shape, is_scored: bool) -> list[Callable[[], object]]:
    """Calls that compile at least one kernel each; the way back is not for what is only scored."""
    calls: list[Callable[[], object]] = []
    sizes = (device, shape.head_dim, shape.context)
    for window in {shape.reaches[0], shape.reaches[-1]}:  # all of the context, and less
        calls.append(partial(fa4.try_forward, *sizes, window, shape.has_documents))
        if not is_scored:
            calls.append(partial(fa4.try_backward, *sizes, window, shape.has_documents))
    calls.append(partial(mlp.try_up, "quack", device))
    for product in linear.list_kinds(shape, is_scored=is_scored):
        calls.append(partial(linear.try_product, device, *product))
    if shape.has_float8 and not is_scored:
        calls += [partial(float8.try_product, device), partial(float8.try_up, device)]
    if is_scored:
        calls.append(partial(softcap_ce.try_out, device))
    else:
        calls.append(partial(mlp.try_down, "quack", device))
        calls.append(partial(softcap_ce.call_kernel, device, shape))
        calls.append(partial(table.call_kernel, device, shape))
        calls.append(partial(residual.try_share, device, shape))
    for kind in residual.list_kinds(shape):
        calls.append(partial(residual.try_kind, device, shape.width, kind))
    for has_value in shape.value_forms:
        calls.append(partial(rotary.call_kernels, device, shape, has_value, is_scored))
    return calls


def _has_kernels() -> bool:
    folder = Path(os.environ.get(FOLDER, ""))
    # importing the library makes empty folders there
    return FOLDER not in os.environ or any(path.is_file() for path in folder.rglob("*"))


def _compile(device: torch.device, shape: Shape, is_scored: bool) -> None:
    """A child for each call; returns when all have ended."""
    children = []
    for call in list_calls(device, shape, is_scored):
        pid = os.fork()
        if pid == 0:
            with suppress(BaseException):
                die_with_parent()
                call()
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
