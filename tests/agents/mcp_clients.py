"""Claude Code and Codex use our MCP tools on a real workspace: part of make test-agents

Each client starts `autoresearch mcp` itself (stdio), then meets one that serves HTTP with a token.
The loopback model server asks for the tools as an agent would: status, champion, propose, run until
it ends, ledger, diff. The trials are real ones of a second on the CPU. What counts is what each
client sent back to the model in its last request, beside the ledger. No key, no network, a home of
its own. Prints a Markdown table; the exit code is 1 where a trial is missing, or a client told the
model something else than the ledger holds. About 2 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "stubs")]

from modelserver import ModelServer, Turn  # noqa: E402
from run_clients import KEYS, MODELS, install, version_of  # noqa: E402

from autoresearch import workspace as workspaces  # noqa: E402
from autoresearch.cli.mcp_server import COMMAND, TOKEN_NAME  # noqa: E402
from autoresearch.data import dataset  # noqa: E402
from autoresearch.search.ledger import Ledger  # noqa: E402
from autoresearch.values.records import Trial  # noqa: E402
from autoresearch.workspace import Workspace  # noqa: E402

TOKEN = "loopback-token"
TASK = "Improve train.py by one trial with the tools of autoresearch."
EDITS = {  # one constant a session, so that each line still stands when its turn comes
    ("claude", "stdio"): ("QK_GAIN = 1.0 ", "QK_GAIN = 1.1 "),
    ("codex", "stdio"): ("SOFTCAP = 15.0 ", "SOFTCAP = 20.0 "),
    ("claude", "http"): ("HEAD_LR = 0.002 ", "HEAD_LR = 0.004 "),
    ("codex", "http"): ("MATRIX_LR = 0.01 ", "MATRIX_LR = 0.02 "),
}
SETTINGS = {
    "trial": {"budget_s": 1.0},
    "judge": {"policy": "greedy", "calibration_runs": 2},
    "data": {"corpus": "files", "score_tokens": 8_192, "holdout_tokens": 4_096},
}
LIMIT_S = 300.0  # seconds a client


class Operator(ModelServer):
    """A model that works through one trial with the MCP tools it is offered."""

    def __init__(self, description: str, edit: tuple[str, str]) -> None:
        super().__init__([])
        self.description = description
        self.edit = dict(zip(("search", "replace"), edit, strict=True))

    def decide(self, text: str, stage: int, tools: list[str]) -> Turn:
        """The next call, by the number of results and of answers of `run` so far."""
        names = {name.rpartition("__")[2]: name for name in tools if "__autoresearch__" in name}
        if TASK not in text or not names:
            return Turn(text="A title")
        states = re.findall(r'"state":\s*"(\w+)"', text)
        propose = {"description": self.description, "edits": [self.edit]}
        calls: list[tuple[str, dict[str, Any]]] = [
            ("status", {}), ("champion", {}), ("propose", propose), ("run", {"wait_s": 1})
        ]  # fmt: skip
        calls += [("run", {})] * (len(states) - (states[-1:] != ["running"]))
        calls += [("ledger", {"last": 1}), ("diff", {"trial": "1"})]
        if stage >= len(calls):
            return Turn(text="Done.")
        name, arguments = calls[stage]
        return Turn(tool=names[name], arguments=arguments)


def make_workspace(folder: Path) -> Workspace:
    """A demo whose runs take a second, on the standard library's source."""
    texts = folder / "texts"
    texts.mkdir()
    for path in sorted(Path(os.__file__).parent.glob("*.py"))[:40]:
        (texts / f"{path.stem}.txt").write_bytes(path.read_bytes())
    (texts / "val.txt").write_bytes((Path(os.__file__).parent / "argparse.py").read_bytes())
    data = {**SETTINGS["data"], "path": str(texts)}
    made = workspaces.init(folder / "w", "demo", {**SETTINGS, "data": data})
    dataset.prepare(made.config.data, folder / "home")
    return made


def server_words(workspace: Workspace) -> list[str]:
    """`autoresearch mcp` of this source."""
    return [*COMMAND, "mcp", "-w", str(workspace.root)]


def server_variables(workspace: Workspace) -> dict[str, str]:
    """What that server needs beyond what a client hands on by itself."""
    home = str(workspace.root.parent / "home")
    return {"PYTHONPATH": str(ROOT / "src"), "AUTORESEARCH_HOME": home, "OMP_NUM_THREADS": "1"}


def claude_words(folder: Path, url: str, place: dict[str, Any]) -> list[str]:
    """Claude Code's command line; `place` says where the MCP server is."""
    if "url" in place:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        place = {"type": "http", "url": place["url"], "headers": headers}
    place = {
        **place,
        "alwaysLoad": True,
    }  # else a slow start leaves its first request without tools
    file = folder / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"autoresearch": place}}))
    return ["claude", "-p", TASK, "--output-format", "stream-json", "--verbose", "--max-turns",
            "60", "--model", MODELS["claude"], "--mcp-config", str(file), "--strict-mcp-config",
            "--allowedTools", "mcp__autoresearch__*", "--no-session-persistence"]  # fmt: skip


def codex_words(folder: Path, url: str, place: dict[str, Any]) -> list[str]:
    """Codex's; its owner allows the two tools that change something."""
    provider = f'{{name="own",base_url="{url}/v1",env_key="OPENAI_API_KEY",wire_api="responses"}}'
    settings = {"model_provider": "own", "model_providers.own": provider}
    if "url" in place:
        place = {**place, "bearer_token_env_var": TOKEN_NAME}
    table: dict[str, Any] = {**place, "required": True, "startup_timeout_sec": 60}
    variables = table.pop("env", {})
    table |= {f"env.{name}": value for name, value in variables.items()}
    table |= {f"tools.{name}.approval_mode": "approve" for name in ("propose", "run")}
    settings |= {f"mcp_servers.autoresearch.{key}": json.dumps(v) for key, v in table.items()}
    options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
    return ["codex", "exec", "--json", "--ephemeral", "--skip-git-repo-check", "-C", str(folder),
            "-s", "read-only", "-m", MODELS["codex"], *options, TASK]  # fmt: skip


@contextlib.contextmanager
def serve_http(workspace: Workspace) -> Iterator[str]:
    """`autoresearch mcp --http` until the block ends; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    env = {**os.environ, **server_variables(workspace), TOKEN_NAME: TOKEN}
    words = [*server_words(workspace), "--http", "--port", str(port)]
    process = subprocess.Popen(words, env=env, stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + 60.0
        while process.poll() is None and time.monotonic() < limit:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait(30.0)


def exchanges(body: dict[str, Any]) -> list[tuple[str, Any, str]]:
    """(tool, arguments, result as the model saw it) of a conversation, in either dialect."""
    content = [message["content"] for message in body.get("messages", [])]
    items = [item for each in content if isinstance(each, list) for item in each]
    items += body.get("input", [])
    calls, results = [], []
    for item in items:
        if item.get("type") == "tool_use":
            calls.append((item["name"].rpartition("__")[2], item["input"]))
        elif item.get("type") == "function_call":
            calls.append((item["name"], json.loads(item["arguments"])))
        elif item.get("type") in ("tool_result", "function_call_output"):
            told = item["content"] if "content" in item else item["output"]
            parts = told if isinstance(told, list) else [{"text": told}]
            results.append("".join(part.get("text", "") for part in parts))
    return [(*call, result) for call, result in zip(calls, results, strict=False)]


def read_trials(workspace: Workspace) -> tuple[Trial, ...]:
    """All trials of a ledger whose chain is whole; none before the first session."""
    if not workspace.ledger_path.exists():
        return ()
    with Ledger.read(workspace.ledger_path) as ledger:
        ledger.verify()
        return tuple(ledger.history().trials)


def check(trials: tuple[Trial, ...], before: int, seen: list[tuple[str, Any, str]]) -> str:
    """What is wrong between the ledger and what the model was told; "" is well."""
    if len(trials) != before + 1 or trials[-1].decision is None:
        return f"{len(trials) - before} trials, expected 1"
    failed = [tool for tool, _, result in seen if "Error executing tool" in result]
    if failed:
        return f"errors from {failed}"
    told = [result for tool, _, result in seen if tool == "run"][-1:]
    found = re.search(r"\{.*\}", told[0], re.DOTALL) if told else None
    answer = json.loads(found[0]) if found else {}
    facts = ("done", before + 1, trials[-1].decision.verdict.value)
    given = (answer.get("state"), answer.get("trial"), answer.get("verdict"))
    return "" if given == facts else f"the model was told {given}, the ledger holds {facts}"


def work(
    client: str, transport: str, env: dict[str, str], workspace: Workspace
) -> tuple[str, bool]:
    """One client's trial over one transport; its row of the table and whether all is well."""
    before = len(read_trials(workspace))
    description = f"{client} over {transport}"
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = stack.enter_context(Operator(description, EDITS[client, transport]))
        program, *arguments = server_words(workspace)
        place: dict[str, Any] = {"command": program, "args": arguments,
                                 "env": server_variables(workspace)}  # fmt: skip
        if transport == "http":
            place = {"url": stack.enter_context(serve_http(workspace))}
        home = folder / "home"
        (home / ".codex").mkdir(parents=True)
        own = {**KEYS, "PATH": env["PATH"], "HOME": str(home), "CODEX_HOME": str(home / ".codex"),
               "ANTHROPIC_BASE_URL": model.url, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
               "DISABLE_AUTOUPDATER": "1", "MCP_CONNECT_TIMEOUT_MS": "60000",
               TOKEN_NAME: TOKEN}  # fmt: skip
        make_words = claude_words if client == "claude" else codex_words
        words = make_words(folder, model.url, place)
        began = time.monotonic()
        try:
            done = subprocess.run(words, env=own, cwd=folder, stdin=subprocess.DEVNULL, text=True,
                                  capture_output=True, timeout=LIMIT_S, check=False)  # fmt: skip
        except subprocess.TimeoutExpired as late:
            done = subprocess.CompletedProcess(words, 124, str(late.stdout), str(late.stderr))
        elapsed_s = time.monotonic() - began
        seen = max((exchanges(body) for body in model.bodies), key=len, default=[])
    for tool, asked, result in seen:
        print(f"{description}: {tool}({json.dumps(asked)}) -> {result[:600]}", file=sys.stderr)
    trials = read_trials(workspace)
    problem = check(trials, before, seen)
    if problem or done.returncode:
        print(f"{description}: {problem}, exit code {done.returncode}\n{done.stdout[-4000:]}"
              f"{done.stderr[-2000:]}", file=sys.stderr)  # fmt: skip
    row = (
        f"| {client} {version_of(client, env)} | {transport} | "
        f"{count_calls([tool for tool, *_ in seen])} | "
        f"{problem or f'trial {len(trials)}: {trials[-1].decision.verdict.value}'} | "
        f"{elapsed_s:.0f} |"
    )
    return row, not problem and done.returncode == 0


def count_calls(tools: list[str]) -> str:
    """`status, run 2x`: each tool once, in the order of its first call."""
    counts = {tool: tools.count(tool) for tool in tools}
    return ", ".join(tool if n == 1 else f"{tool} {n}x" for tool, n in counts.items())


def main() -> int:
    """Install, make a workspace, let each work, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / ".agents")
    parser.add_argument("--clients", default="claude,codex")
    parser.add_argument("--transports", default="stdio,http")
    options = parser.parse_args()
    clients = options.clients.split(",")
    env = install(options.folder.resolve(), clients)
    with tempfile.TemporaryDirectory() as place:
        workspace = make_workspace(Path(place))
        rows = [
            work(client, transport, env, workspace)
            for transport in options.transports.split(",")
            for client in clients
        ]
    print(f"| client | transport | tools called | trial | seconds |\n{'|---' * 5}|")
    print("\n".join(row for row, _ in rows))
    return 0 if all(is_well for _, is_well in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
