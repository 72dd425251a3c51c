"""A whole trial through MCP: in memory, over stdio, over HTTP, on one real workspace."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import drive
import pytest
from lab import STUBS

from autoresearch import workspace as workspaces
from autoresearch.cli import mcp_server
from autoresearch.cli.mcp_server import COMMAND, make_server
from autoresearch.data import dataset
from autoresearch.search.ledger import Ledger
from autoresearch.system.files import cache_home
from autoresearch.views.text import clean
from autoresearch.workspace import Workspace

mcp = pytest.importorskip("mcp")
pytestmark = pytest.mark.timeout(300)  # real runs: the first trial calibrates
SOURCE = str(Path(workspaces.__file__).parents[1])
TOKEN = "loopback"
CHANGES = {
    "trial": {"budget_s": 1.0},
    "judge": {"policy": "greedy", "calibration_runs": 2},
    "data": {"score_tokens": 8_192, "holdout_tokens": 4_096},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A prepared demo workspace with runs of a second, whose processes find this source."""
    folder = tmp_path_factory.mktemp("mcp")
    texts = folder / "texts"
    texts.mkdir()
    for path in sorted(Path(os.__file__).parent.glob("*.py"))[:40]:
        (texts / f"{path.stem}.txt").write_bytes(path.read_bytes())
    (texts / "val.txt").write_bytes((Path(os.__file__).parent / "argparse.py").read_bytes())
    data = {**CHANGES["data"], "corpus": "files", "path": str(texts)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTORESEARCH_HOME", str(folder / "home"))
        patch.setenv("PYTHONPATH", SOURCE)
        made = workspaces.init(folder / "w", "demo", {**CHANGES, "data": data})
        dataset.prepare(made.config.data, cache_home())
        yield made


@pytest.fixture
def stubs(home: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Another workspace on the same data, whose candidates and scorer do without torch."""
    monkeypatch.setattr(mcp_server, "COMMAND", (sys.executable, str(STUBS / "command.py")))
    data = {**CHANGES["data"], "corpus": "files", "path": home.config.data.path}
    trial = {**CHANGES["trial"], "score_rows_per_chunk": 8}
    made = workspaces.init(tmp_path / "w", "demo", {**CHANGES, "data": data, "trial": trial})
    (made.root / "train.py").write_text(drive.TRAIN)
    person = ["-c", "user.name=A", "-c", "user.email=a@b"]
    subprocess.run(["git", *person, "commit", "-qam", "stub"], cwd=made.root, check=True)
    return made


@pytest.fixture(autouse=True)
def _same_home(home: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tests here share data and source."""
    monkeypatch.setenv("AUTORESEARCH_HOME", str(home.root.parent / "home"))
    monkeypatch.setenv("PYTHONPATH", SOURCE)


async def work(client: Any, description: str, old: str, new: str) -> dict[str, Any]:
    """One trial as an agent does it: look, propose, run, wait."""

    async def call(name: str, **arguments: Any) -> dict[str, Any]:
        result = await client.call_tool(name, arguments)
        assert not result.is_error, result
        return dict(result.structured_content)

    source = (await call("champion"))["train_py"]
    line = next(line for line in source.splitlines() if line.startswith(old))
    edit = {"search": line, "replace": new}
    proposed = await call("propose", description=description, edits=[edit])
    assert proposed["accepted"], proposed
    answer = await call("run", wait_s=0.1)
    assert answer["state"] == "running"
    while answer["state"] == "running":
        assert (await call("status"))["is_trial_running"]
        answer = await call("run", wait_s=20.0)
    assert answer["state"] == "done", answer
    listed = (await call("ledger", last=1))["result"]
    assert listed[0]["description"] == description
    return answer


def count_trials(workspace: Workspace) -> int:
    """Trials so far; 0 before the first session."""
    if not workspace.ledger_path.exists():
        return 0
    with Ledger.read(workspace.ledger_path) as ledger:
        return len(ledger.history().trials)


def check(workspace: Workspace, answer: dict[str, Any], before: int) -> None:
    """One trial more; the ledger says what the client was told, train.py is the champion's."""
    with Ledger.read(workspace.ledger_path) as ledger:
        ledger.verify()
        history = ledger.history()
    assert len(history.trials) == before + 1
    trial = history.trials[-1]
    assert trial.decision is not None
    assert (answer["trial"], answer["verdict"]) == (before + 1, trial.decision.verdict.value)
    assert answer["reason"] == clean(trial.decision.reason)
    assert answer["champion"] == history.champion
    champion = workspace.repository.read(history.champion, "train.py")
    assert workspace.read_train() == champion


def test_in_memory(stubs: Workspace) -> None:
    """The server and its client in one process; the first trial calibrates."""

    async def talk() -> dict[str, Any]:
        async with mcp.Client(make_server(stubs)) as client:
            return await work(client, "stretched further", "GAIN", "GAIN = 0.6")

    before = count_trials(stubs)
    check(stubs, asyncio.run(talk()), before)


def test_what_clients_show_of_the_tools(home: Workspace) -> None:
    """Views say that they only read; an edit's two fields stand in the schema; reasons arrive."""

    async def talk() -> tuple[dict[str, Any], str, str]:
        async with mcp.Client(make_server(home)) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            refused = await client.call_tool("diff", {"trial": "9999"})
            assert refused.is_error
            with pytest.raises(mcp.MCPError) as missing:
                await client.read_resource("ledger://9999")
            return tools, refused.content[0].text, str(missing.value)

    tools, *reasons = asyncio.run(talk())
    reading = {name for name, tool in tools.items() if tool.annotations.read_only_hint}
    assert reading == {"status", "ledger", "diff", "champion"}
    (edit,) = tools["propose"].input_schema["$defs"].values()
    assert edit["required"] == ["search", "replace"]
    for reason in reasons:
        assert "no trial '9999'; there are" in reason
    for tool in tools.values():
        assert "\n\n" not in tool.description  # Claude Code may show the first paragraph alone


@pytest.mark.slow
def test_stdio(home: Workspace) -> None:
    """As an agent's configuration starts it."""

    async def talk() -> tuple[dict[str, Any], str]:
        words = [*COMMAND[1:], "mcp", "-w", str(home.root)]
        server = mcp.StdioServerParameters(command=COMMAND[0], args=words, env=dict(os.environ))
        async with mcp.Client(server) as client:
            answer = await work(client, "faster head", "HEAD_LR", "HEAD_LR = 0.01")
            record = await client.read_resource(f"ledger://{answer['trial']}")
            return answer, record.contents[0].text

    before = count_trials(home)
    answer, record = asyncio.run(talk())
    check(home, answer, before)
    assert json.loads(record)["description"] == "faster head"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serve(home: Workspace, port: int) -> Iterator[str]:
    """`autoresearch mcp --http` until the block ends; its address."""
    words = [*COMMAND, "mcp", "--http", "--port", str(port), "-w", str(home.root)]
    environment = {**os.environ, "AUTORESEARCH_MCP_TOKEN": TOKEN}
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 60.0
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            break
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait(30.0)


@contextlib.asynccontextmanager
async def connect(url: str) -> AsyncIterator[Any]:
    """A client that sends the token."""
    import httpx2 as httpx
    from mcp.client.streamable_http import streamable_http_client

    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(headers=headers, timeout=60.0) as http:
        transport = streamable_http_client(url, http_client=http)
        async with mcp.Client(transport) as client:
            yield client


@pytest.mark.slow
def test_http(home: Workspace) -> None:
    """With the token a whole trial, without it nothing."""

    async def talk(url: str) -> dict[str, Any]:
        async with connect(url) as client:
            return await work(client, "softer cap", "SOFTCAP", "SOFTCAP = 20.0")

    with serve(home, free_port()) as url:
        for headers in ({}, {"Authorization": "Bearer guess"}):
            request = urllib.request.Request(url, data=b"{}", headers=headers)
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=10)
            assert refused.value.code == 401
            refused.value.close()
        before = count_trials(home)
        check(home, asyncio.run(talk(url)), before)


@pytest.mark.slow
def test_the_command_line_does_the_same(home: Workspace) -> None:
    """`train -m` on an edited file; a second time it is refused, and costs no run."""
    again = {"keep": "nothing changed"}  # it is the champion then
    edited = home.read_train().replace("\nQK_GAIN = 1.0", "\nQK_GAIN = 1.1")
    number = count_trials(home) + 1
    for code in (0, 2):
        home.write_train(edited)
        done = subprocess.run(
            [sys.executable, *COMMAND[1:], "train", "-m", "sharper", "-w", str(home.root)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        said = done.stdout + done.stderr
        if code == 0:
            verdict = said.split(f"trial {number}: ")[1].split()[0]
    assert again.get(verdict, f"was tried in trial {number}") in said
    assert count_trials(home) == number
