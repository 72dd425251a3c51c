"""Behind each sandbox level: the card works, and what is not for candidates is not there."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lab import TORCH_BIGRAM, Lab, make_dataset

from autoresearch.system.sandbox import Walls, device_nodes, probe_levels
from autoresearch.values.records import Outcome

pytestmark = pytest.mark.timeout(300)
LEVELS = [level for level, works, _ in probe_levels() if works and level != "landlock"]
PROGRAM = """
import torch
x = torch.ones(1024, 1024, device="cuda", dtype=torch.bfloat16)
print(torch.cuda.device_count(), (x @ x).float().mean().item())
step = torch.compile(lambda x: (x * 2 + 1).relu())
print(step(x).float().mean().item())
"""


@pytest.mark.gpu
@pytest.mark.parametrize("level", LEVELS)
def test_cuda_and_triton_work(level: str, tmp_path: Path) -> None:
    """A product and a compiled kernel on the last card, and no other card is seen."""
    host = Lab(tmp_path / "lab", level=level).host
    host.device = f"cuda:{torch.cuda.device_count() - 1}"
    sandbox, cache_folder = host.sandbox, tmp_path / "cache"
    cache_folder.mkdir()
    cache_folder.chmod(0o777)
    walls = Walls(writable={cache_folder: "/cache"}, device_nodes=device_nodes(host.device))
    env = host.env_inside(sandbox.inside(walls, cache_folder))
    argv = [sys.executable, "-c", PROGRAM]
    tree = sandbox.spawn(argv, walls, env=env, pass_fds=(), output_cap_bytes=1 << 16)
    limit = time.monotonic() + 250
    while tree.exit_code() is None and time.monotonic() < limit:
        time.sleep(0.05)
    assert tree.kill() == []
    assert tree.output.text().split()[-3:] == ["1", "1024.0", "3.0"], tree.output.text()


LOOK = '''
import os
import socket


def sees(paths, port, root="/"):
    """Those of the files that are anywhere to be found, by path or by name, and the network."""
    found = [path for path in paths if os.path.exists(path)]
    names = {os.path.basename(path) for path in paths}
    for top, folders, files in os.walk(root):
        folders[:] = [f for f in folders if os.path.join(top, f) not in ("/proc", "/sys")]
        found += [os.path.join(top, name) for name in files if name in names]
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
        found.append("the network")
    except OSError:
        pass
    return found
'''
LOOKING = """
PATHS, PORT = @PATHS@, @PORT@


def build_model(run):
    if found := sees(PATHS, PORT):  # in the presenter too, which has no other way to say so
        raise RuntimeError(f"it sees {found}")
    return Bigram(run.vocab_size).to(run.device)
"""


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
@pytest.mark.usefixtures("bubblewrap")
def test_neither_sandbox_sees_rows_ledger_or_network(device: str, tmp_path: Path) -> None:
    """Candidate and presenter search everything that they can read, and call a server of ours."""
    dataset = make_dataset(tmp_path / "data")
    ledger = tmp_path / "workspace" / "ledger.sqlite"
    ledger.parent.mkdir()
    ledger.write_bytes(b"SQLite format 3\0")
    paths = [str(dataset.validation_path), str(dataset.holdout_path), str(ledger)]
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    outside: dict[str, Any] = {}
    exec(LOOK, outside)
    assert {*paths, "the network"} <= {*outside["sees"](paths, port, str(tmp_path))}, (
        "what is there to be seen"
    )
    looking = LOOKING.replace("@PATHS@", repr(paths)).replace("@PORT@", str(port))
    before, after = TORCH_BIGRAM.split("\n\ndef main")
    lab = Lab(tmp_path / "lab", is_stub=False, dataset=dataset, device=device)
    lab.host.device = device
    try:
        run = lab.run(f"{LOOK}{before}{looking}\n\ndef main{after}")
    finally:
        lab.close()
        server.close()
    assert run.outcome is Outcome.SCORED, run.reason
    assert run.device == device
