"""The MCP tools without a server process: what they answer, what they refuse."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from autoresearch import workspace as workspaces
from autoresearch.cli import mcp_server
from autoresearch.cli.mcp_server import TrialProcess, make_server
from autoresearch.search.branch import Branch
from autoresearch.workspace import Workspace

mcp = pytest.importorskip("mcp")


@pytest.fixture
def here(tmp_path: Path) -> Workspace:
    """A fresh demo workspace."""
    return workspaces.init(tmp_path / "w", "demo")


def ask(workspace: Workspace, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
    """The answers of a server to calls of one client, in memory."""

    async def talk() -> list[Any]:
        async with mcp.Client(make_server(workspace)) as client:
            return [(await client.call_tool(*call)).structured_content for call in calls]

    return asyncio.run(talk())


def test_propose_puts_an_edit_on_the_disk(here: Workspace) -> None:
    """Search and replace on the champion, after the checks that every proposal meets."""
    before = here.read_train()
    line = next(line for line in before.splitlines() if line.startswith("DEPTH = "))
    edit = {"search": line, "replace": "DEPTH = 3"}
    (answer,) = ask(here, ("propose", {"description": "deeper", "edits": [edit]}))
    assert answer["accepted"] is True
    assert here.read_train() == before.replace(line, "DEPTH = 3")


@pytest.mark.parametrize("has_begun", [False, True])
def test_propose_leaves_an_edit_that_nobody_ran(here: Workspace, has_begun: bool) -> None:
    """A person's work is not lost; what was proposed before may be proposed anew."""
    if has_begun:
        Branch(here.repository, here.config.session.tag).start()
    before = here.read_train()
    by_hand = before.replace("DEPTH = ", "DEPTH = 1 + ", 1)
    here.write_train(by_hand)
    line = next(line for line in before.splitlines() if line.startswith("DEPTH = "))
    request = {"description": "deeper", "edits": [{"search": line, "replace": "DEPTH = 3"}]}
    again = {"description": "deeper", "edits": [{"search": line, "replace": "DEPTH = 5"}]}
    (answer,) = ask(here, ("propose", request))
    assert answer["accepted"] is False
    assert "an edit that was not run" in answer["reason"]
    assert here.read_train() == by_hand
    answers = ask(here, ("propose", {**request, "overwrite": True}), ("propose", again))
    assert [answer["accepted"] for answer in answers] == [True, True]
    assert here.read_train() == before.replace(line, "DEPTH = 5")
    here.train_path.unlink()
    (answer,) = ask(here, ("propose", request))
    assert answer["accepted"] is True
    here.write_train(f"{before}# a note\n")  # the champion's program
    (answer,) = ask(here, ("propose", request))
    assert answer["accepted"] is True
    here.write_train("def half_typed(")
    (answer,) = ask(here, ("propose", request))
    assert answer["accepted"] is False


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "either `source` or `edits`"),
        (
            {"edits": [{"search": "nowhere to be found", "replace": ""}]},
            "stands in train.py 0 times",
        ),
        ({"edits": [{"search": "import", "replace": ""}]}, "expected exactly once"),
        ({"source": "def main(run"}, "line 1"),
        ({"source": "x = 1\n"}, "does not define build_model and main"),
    ],
)
def test_propose_refuses(here: Workspace, request_: dict[str, Any], words: str) -> None:
    """With the reason; the file stays as it was."""
    before = here.read_train()
    (answer,) = ask(here, ("propose", {"description": "broken", **request_}))
    assert answer["accepted"] is False
    assert words in answer["reason"]
    assert here.read_train() == before


def test_views_before_the_first_session(here: Workspace) -> None:
    """The champion is the start, the ledger is empty, nothing runs."""
    champion, ledger, status, run = ask(
        here, ("champion", {}), ("ledger", {}), ("status", {}), ("run", {})
    )
    assert champion["train_py"] == here.read_train()
    assert champion["val_bpb"] is None
    assert ledger == {"result": []}
    assert status == {"is_trial_running": False}
    assert run["state"] == "idle"


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ("import json; print(json.dumps({'trial': 1}))", {"state": "done", "trial": 1}),
        ("raise SystemExit('no such thing')", {"state": "failed", "exit_code": 1}),
    ],
)
def test_a_trial_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, state: dict[str, Any]
) -> None:
    """First it runs, then it is done or has failed, then the next may start."""
    code = f"import time; time.sleep(0.5); {script}"
    monkeypatch.setattr(mcp_server, "COMMAND", (mcp_server.sys.executable, "-c", code))
    trial = TrialProcess(tmp_path)
    trial.start("an idea")
    assert trial.wait(0.01)["state"] == "running"
    assert trial.is_running
    answer = trial.wait(30.0)
    assert state.items() <= answer.items()
    assert not trial.has_started


def test_what_a_client_calls_its_edit_is_one_clean_line(
    here: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No NUL or escape sequence reaches a command line, and no wait is too long for a lock."""
    code = "import json, sys; print(json.dumps({'words': sys.argv[1:]}))"
    monkeypatch.setattr(mcp_server, "COMMAND", (mcp_server.sys.executable, "-c", code))
    edit = {"search": "\nDEPTH = ", "replace": "\nDEPTH = 1 + "}
    *_, first, second = ask(
        here,
        ("propose", {"description": "deep\0er\n", "edits": [edit]}),
        ("run", {"wait_s": 1e12}),
        ("run", {"description": "again\0", "wait_s": 1e12}),
    )
    assert first["words"][:3] == ["train", "-m", "deeper"]
    assert second["words"][2] == "again"
    trial = TrialProcess(here.root)
    trial.start("an idea")
    assert trial.wait(float("nan"))["state"] in ("running", "done")
    assert trial.wait(1e300)["state"] == "done"


def test_two_calls_share_one_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes while it runs starts no second one; all are told how it ended, none is cut."""
    code = "import os, time; open(f'{os.getpid()}', 'w'); time.sleep(0.5); print('{\"trial\": 1}')"
    monkeypatch.setattr(mcp_server, "COMMAND", (mcp_server.sys.executable, "-c", code))
    monkeypatch.chdir(tmp_path)
    trial = TrialProcess(tmp_path)

    def call(patience_s: float) -> dict[str, Any]:
        trial.start("an idea")
        return trial.wait(patience_s)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(call, (30.0, 30.0, 0.01, 30.0)))
    assert answers.count({"state": "done", "trial": 1}) == 3
    assert answers[2]["state"] == "running"
    assert len(list(tmp_path.iterdir())) == 1
    assert not trial.has_started
