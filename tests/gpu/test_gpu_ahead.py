"""A process that waits for its run leaves the card alone; its kernels then compile side by side."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu
WAIT_AND_BUILD = """
import torch
from autoresearch.inside import ops
from autoresearch.inside.ops import ahead

ops.preload()
assert not torch.cuda.is_initialized(), "imports alone started CUDA"
shape = {"device": torch.device("cuda"), "head_dim": 128, "context": 512, "windows": [128, 512]}
ahead.compile_all(**shape, leak=0.0, is_scored=False)
assert not torch.cuda.is_initialized(), "the children have the card, not we"
"""


def test_kernels_appear_before_they_are_called(tmp_path: Path) -> None:
    """FlashAttention's both ways for both kinds of window, quack's beside them."""
    if importlib.util.find_spec("flash_attn") is None:
        pytest.skip("FlashAttention 4 is not installed")
    major, minor = torch.cuda.get_device_capability()
    if major < 9:
        pytest.skip("FlashAttention 4 needs Hopper")
    folders = {"FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": "flash", "TRITON_CACHE_DIR": "triton"}
    env = {**os.environ, "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1"}
    env |= {name: str(tmp_path / folder) for name, folder in folders.items()}
    env["QUACK_ARCH"] = f"{major}{minor}"
    command = [sys.executable, "-W", "ignore", "-c", WAIT_AND_BUILD]
    subprocess.run(command, env=env, check=True, timeout=170)
    assert sum(path.is_file() for path in (tmp_path / "flash").rglob("*")) >= 4
    assert any((tmp_path / "triton" / "quack").rglob("*"))
