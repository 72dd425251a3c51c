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
from autoresearch.inside.ops.shape import Shape

ops.preload()
assert not torch.cuda.is_initialized(), "imports alone started CUDA"
sizes = {"context": 512, "vocab_size": 8192, "width": 256, "num_heads": 2, "kv_heads": 2}
layers = {"windows": [128, 512], "value_layers": [1], "head_dim": 128, "front": 32}
layers |= {"has_offset": True, "has_head_gate": False, "has_documents": True}
layers |= {"has_float8": True}
shape = Shape(**sizes, **layers)
ahead.compile_all(torch.device("cuda"), shape, is_scored=False)
assert not torch.cuda.is_initialized(), "the children have the card, not we"
"""
CALL = """
import torch
from autoresearch.inside.ops import float8, heads, linear
from autoresearch.inside.ops.documents import find_bounds

B, T, H, D = 70, 512, 2, 128
qkv = torch.randn(B, T, 3 * H * D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
turns = [torch.ones(T, 1, D // 2, device="cuda", dtype=torch.bfloat16)] * 2
bounds = find_bounds(torch.randint(9, (B, T), device="cuda"), 0)
for window in (128, -1):
    heads.attend_heads(qkv, *turns, H, None, None, window, True, bounds, 1.0).sum().backward()
for columns in (3 * H * D, H * D):
    x = torch.randn(B, T, H * D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(columns, H * D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    for product in (linear.linear, float8.linear):
        product(x, weight).sum().backward()
    float8.up(x.flatten(0, 1), weight)
"""


def test_kernels_appear_before_they_are_called(tmp_path: Path) -> None:
    """FlashAttention's both ways for both kinds of window, quack's and Triton's, and no others."""
    if importlib.util.find_spec("flash_attn") is None:
        pytest.skip("FlashAttention 4 is not installed")
    major, minor = torch.cuda.get_device_capability()
    if major < 9:
        pytest.skip("FlashAttention 4 needs Hopper")
    folders = {"FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": "flash", "TRITON_CACHE_DIR": "triton"}
    folders["QUACK_CACHE_DIR"] = "quack"
    env = {**os.environ, "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1"}
    env |= {name: str(tmp_path / folder) for name, folder in folders.items()}
    env["QUACK_ARCH"] = f"{major}{minor}"

    def run(program: str) -> set[Path]:
        command = [sys.executable, "-W", "ignore", "-c", program]
        subprocess.run(command, env=env, check=True, timeout=170)
        return {path for path in tmp_path.rglob("*") if path.suffix in (".o", ".cubin")}

    made = run(WAIT_AND_BUILD)
    parts = {path.parent.name for path in made if path.is_relative_to(tmp_path / "flash")}
    assert {"fwd", "bwd", "bwd_pre", "bwd_post", "tile_cumsum", "blocks_to_batch"} <= parts
    assert sum(path.is_relative_to(tmp_path / "quack") for path in made) == 7
    kernels = {path.stem for path in made if path.suffix == ".cubin"}
    assert {
        "add_norm",
        "add_norm_backward",
        "share_backward",
        "segment_sum",
        "softcap_ce",
        "rescale",
        "narrow",
    } <= kernels
    assert {"split_heads", "split_heads_backward"} <= kernels
    assert run(CALL) == made  # attention and products as a step calls them, many rows
