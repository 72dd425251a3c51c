"""CUDA behind each sandbox level: the card works, others' nodes are not there."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from autoresearch.system.procs import guard_this_process
from autoresearch.system.sandbox import Walls, device_nodes, open_sandbox, probe_levels

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
LEVELS = [level for level, works, _ in probe_levels() if works and level != "landlock"]
PROGRAM = """
import torch
x = torch.ones(1024, 1024, device="cuda", dtype=torch.bfloat16)
print(torch.cuda.device_count(), (x @ x).float().mean().item())
step = torch.compile(lambda x: (x * 2 + 1).relu())
print(step(x).float().mean().item())
"""


@pytest.mark.parametrize("level", LEVELS)
def test_cuda_and_triton_work(level: str, tmp_path: Path) -> None:
    """A product and a compiled kernel; compile caches are written to the folder that is open."""
    guard_this_process()
    sandbox = open_sandbox(level)
    walls = Walls(writable={tmp_path: "/cache"}, device_nodes=device_nodes("cuda:0"))
    tmp_path.chmod(0o777)
    cache = sandbox.inside(walls, tmp_path)
    env = {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": cache, "USER": "candidate"}
    argv = [sys.executable, "-c", PROGRAM]
    tree = sandbox.spawn(argv, walls, env=env, pass_fds=(), output_cap_bytes=1 << 16)
    limit = time.monotonic() + 250
    while tree.exit_code() is None and time.monotonic() < limit:
        time.sleep(0.05)
    assert tree.kill() == []
    assert tree.output.text().split()[-3:] == ["1", "1024.0", "3.0"], tree.output.text()
