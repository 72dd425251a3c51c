"""Every real client through whole sessions against the loopback model server: make test-agents

Installs the five clients from their registries into FOLDER (npm with Node 20 or newer; aider into
a venv of its own), then lets each make at least five trials while the server gives good edits, an
edit outside train.py, a syntax error, an empty answer, a 429 storm, a cut connection and a hang. No
key, no network, candidates are stubs. Prints a Markdown table; the exit code is 1 where a client
made fewer than five trials or its bill differs from the server's own count. About 15 minutes on 2
cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
STUBS = ROOT / "tests" / "stubs"
sys.path[:0] = [str(ROOT / "src"), str(STUBS)]

from modelserver import ModelServer  # noqa: E402

from autoresearch.search.ledger import Ledger  # noqa: E402
from autoresearch.search.spending import Usage, add_up, price_usd  # noqa: E402
from autoresearch.values.config import SpendingSettings  # noqa: E402

SCRIPT = ["good", "outside", "syntax", "storm", "empty", "cut", "hang", "good", "good", "good"]
NUM_TRIALS = 5
PACKAGES = {
    "claude": "@anthropic-ai/claude-code",
    "codex": "@openai/codex",
    "gemini": "@google/gemini-cli",
    "opencode": "opencode-ai",
}
MODELS = {
    "claude": "claude-sonnet-4-5",
    "codex": "gpt-5.1",
    "gemini": "gemini-2.5-flash",
    "opencode": "own/gpt-5.1",
    "aider": "openai/gpt-5.1",
}
KEYS = {
    "OPENAI_API_KEY": "sk-loopback-000000000000000000",
    "ANTHROPIC_API_KEY": "sk-ant-loopback-000000000000",
    "GEMINI_API_KEY": "gm-loopback-000000000000",
}


def install(folder: Path, clients: list[str]) -> dict[str, str]:
    """Whatever is missing; the environment with their programs on the PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    npm = folder / "node_modules" / ".bin"
    missing = [PACKAGES[c] for c in clients if c in PACKAGES and not (npm / c).exists()]
    if missing:
        quiet = ["--no-fund", "--no-audit", "--prefix", str(folder)]
        subprocess.run(["npm", "install", *quiet, *missing], check=True)
    aider = folder / "aider" / "bin"
    if "aider" in clients and not (aider / "aider").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / "aider")], check=True)
        subprocess.run([aider / "pip", "install", "-q", "aider-chat"], check=True)
    return {**os.environ, "PATH": os.pathsep.join([str(npm), str(aider), os.environ["PATH"]])}


def version_of(client: str, env: dict[str, str]) -> str:
    """The number that the client prints."""
    done = subprocess.run([client, "--version"], env=env, capture_output=True, text=True)
    return next((word for word in done.stdout.split() if word[:1].isdigit()), "?")


def drive(client: str, env: dict[str, str], deadline_s: float) -> tuple[str, bool]:
    """One client's session; its row of the table and whether all is well."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place, ModelServer(SCRIPT) as server:
        url = server.url + ("" if client in ("claude", "gemini") else "/v1")
        tables = {
            "researcher": {"kind": "agent", "backoff_s": 0.1},
            "agent": {"client": client, "model": MODELS[client], "base_url": url,
                      "deadline_s": deadline_s},
            "spending": {"session_usd": 20.0, "proposal_usd": 1.0, "then": "stop"},
        }  # fmt: skip
        command = [sys.executable, STUBS / "drive.py", place, str(NUM_TRIALS), json.dumps(tables)]
        path = os.pathsep.join([str(ROOT / "src"), str(STUBS)])
        env = {**env, **KEYS, "PYTHONPATH": path}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        print(f"{client}: {done.stdout.strip()}{done.stderr[-2000:]}", file=sys.stderr, flush=True)
        with Ledger.read(Path(place) / "ledger.sqlite") as ledger:
            history = ledger.history()
        tally = server.tally
    bill = add_up(history.calls)
    counted = Usage(input_tokens=tally.input_tokens, output_tokens=tally.output_tokens)
    model = MODELS[client].rpartition("/")[2]
    server_usd = price_usd(SpendingSettings(), model, counted) or 0.0
    settled_usd = bill.usd - bill.unsettled_usd
    kinds = Counter(refusal.kind for refusal in history.refusals)
    for refusal in history.refusals:
        print(f"{client}: {refusal.kind}: {refusal.reason[:300]}", file=sys.stderr, flush=True)
    closed = [trial for trial in history.trials if trial.decision]
    hung = sum(1 for idea in tally.ideas if idea == "hang")
    is_well = len(closed) >= NUM_TRIALS and abs(settled_usd - server_usd) < 0.01
    row = (
        f"| {client} {version_of(client, env)} | {len(closed)} | "
        f"{', '.join(f'{count} {kind}' for kind, count in kinds.items())} | {bill.num_calls} | "
        f"{tally.requests} | {settled_usd:.4f} | {server_usd:.4f} | {bill.num_unsettled} ({hung} "
        f"hung) | {time.monotonic() - began:.0f} |"
    )
    return row, is_well


def main() -> int:
    """Install, drive, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / ".agents")
    parser.add_argument("--clients", default="claude,codex,gemini,opencode,aider")
    parser.add_argument("--deadline", type=float, default=60.0, help="seconds a visit")
    parser.add_argument("--parallel", type=int, default=2)
    options = parser.parse_args()
    clients = options.clients.split(",")
    env = install(options.folder.resolve(), clients)
    with ThreadPoolExecutor(options.parallel) as pool:
        rows = list(pool.map(lambda client: drive(client, env, options.deadline), clients))
    heads = ["client", "trials", "refused", "visits", "requests", "our dollars", "the server's"]
    print(f"| {' | '.join(heads)} | unsettled | seconds |\n{'|---' * 9}|")
    print("\n".join(row for row, _ in rows))
    return 0 if all(is_well for _, is_well in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
