"""The agent researcher before and around a visit: its program, its price, its environment."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from askers import HashedAgent, MemoryLedger, make_desk

from autoresearch.search.history import History
from autoresearch.search.researchers import Unusable
from autoresearch.search.researchers import agent as agent_module
from autoresearch.search.researchers.agent import AgentResearcher, Visit
from autoresearch.values.errors import UserError

SOURCE = "RATE = 0.02  # step size [0.001, 1.0] log\n"
COMMAND = {"command": f"{sys.executable} {{prompt_file}} --in={{folder}} {{model_words}}"}


def make_places(tmp_path: Path) -> dict[str, str]:
    """What placeholders are filled with."""
    return {
        "prompt": "{home} stays", "prompt_file": "/p", "folder": "/f", "home": str(tmp_path),
        "file": "/f/train.py", "model": "x/m", "model_name": "m", "base_url": "http://u",
        "usd": "1.0000",
    }  # fmt: skip


def test_a_missing_program_is_told_before_the_night() -> None:
    """Its name, and what to do."""
    with pytest.raises(UserError, match=r"program 'codex' is not on the PATH; install it"):
        AgentResearcher(make_desk(agent={"client": "codex"}))


def test_a_client_without_a_price_needs_one(tmp_path: Path) -> None:
    """Dollars cannot be capped otherwise; Claude Code names its own price."""
    for name in ("codex", "claude"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    caps = {"session_usd": 1.0}

    def make(client: str, **spending: Any) -> AgentResearcher:
        desk = make_desk(agent={"client": client}, spending={**caps, **spending})
        return AgentResearcher(dataclasses.replace(desk, environment={"PATH": str(tmp_path)}))

    with pytest.raises(UserError, match=r"no price is known for agent.model = ''"):
        make("codex")
    assert make("codex", input_usd=1.0).name == make("claude").name == "agent"


def test_a_visit_gets_a_home_and_its_keys_and_nothing_else(tmp_path: Path) -> None:
    """A variable that is named may pass too."""
    desk = make_desk(researcher=COMMAND, agent={"variables": "MINE, ABSENT"})
    outer = {**desk.environment, "MINE": "1", "HOME": "/root", "OTHER": "x", "LANG": "C"}
    researcher = AgentResearcher(dataclasses.replace(desk, environment=outer))
    env = researcher._environment(make_places(tmp_path))
    assert env["HOME"] == str(tmp_path)
    assert set(env) == {"PATH", "LANG", "MINE", "HOME", "TMPDIR", "TERM", "NO_COLOR"}


def test_placeholders_are_filled_once(tmp_path: Path) -> None:
    """What is put in is not looked at again; words for a model go when there is none."""
    words = f"{sys.executable} {{prompt}} --in={{folder}} {{model_words}} {{unknown}}"
    researcher = AgentResearcher(make_desk(researcher={"command": words}))
    filled = researcher._words(make_places(tmp_path))
    assert filled[1:] == ["{home} stays", "--in=/f", "{unknown}"]


def test_usage_without_a_price_stands_at_its_reservation() -> None:
    """As long as there is a cap in dollars to hold."""
    for cap, is_settled in ((0.0, True), (2.0, False)):
        desk = make_desk(researcher=COMMAND, spending={"session_usd": 9.0 * cap,
                                                       "proposal_usd": cap})  # fmt: skip
        HashedAgent(desk).propose(History(), "base", SOURCE)
        ledger: MemoryLedger = desk.ledger  # type: ignore[assignment]
        (call,) = ledger.history().calls
        assert call.is_settled is is_settled
        assert call.usd == cap


class Vandal(HashedAgent):
    """Its agent does in its folder what a line of code says."""

    deed: Callable[[Path], object]

    def _run(self, visit: Visit, prompt: str, usd: float) -> tuple[str, bool]:
        self.places = [visit.folder.parent]
        return str(self.deed(visit.folder)), False


def nest(folder: Path) -> None:
    """1,500 folders in one another."""
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)


def test_a_variable_that_is_passed_on_is_kept_out_of_git() -> None:
    """Whatever its name: an agent that writes it down is refused."""
    desk = make_desk(researcher=COMMAND, agent={"variables": "MYCRED"})
    outer = {**desk.environment, "MYCRED": "opensesame"}
    agent = Vandal(dataclasses.replace(desk, environment=outer))
    agent.deed = lambda folder: (folder / "train.py").write_text("A = 'opensesame'\n")  # type: ignore[method-assign]
    with pytest.raises(Unusable) as caught:
        agent.propose(History(), "base", SOURCE)
    assert caught.value.kind == "secret"
    assert "opensesame" not in caught.value.edit


@pytest.mark.parametrize(
    ("deed", "kind"),
    [
        (lambda folder: os.truncate(folder / "train.py", 1 << 40), "too_large"),
        (lambda folder: [(folder / "big").touch(), os.truncate(folder / "big", 200 << 30)],
         "outside"),
        (lambda folder: os.truncate(folder / "program.md", 200 << 30), "outside"),
        (lambda folder: (folder / "program.md").write_text("THE TASK"), "outside"),
        (lambda folder: os.mkfifo(folder / "pipe"), "outside"),
        (nest, "empty"),
        (lambda _: '{"a":' * 100_000, "empty"),
        (lambda _: '{"total_cost_usd": 1' + "0" * 400 + "}", "empty"),
    ],
)  # fmt: skip
def test_what_an_agent_leaves_never_ends_the_session(
    deed: Callable[[Path], object], kind: str
) -> None:
    """Files larger than the disk, folders without end, figures without end; its folder goes."""
    agent = Vandal(make_desk(researcher=COMMAND))
    agent.deed = deed  # type: ignore[method-assign]
    with pytest.raises(Unusable) as caught:
        agent.propose(History(), "base", SOURCE)
    assert caught.value.kind == kind
    assert not agent.places[0].exists()


def test_an_agent_that_leaves_too_many_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not looked at one by one."""
    monkeypatch.setattr(agent_module, "_MOST_FILES", 20)
    agent = Vandal(make_desk(researcher=COMMAND))
    agent.deed = lambda folder: [(folder / f"f{i}").touch() for i in range(30)]  # type: ignore[method-assign]
    with pytest.raises(Unusable, match="left more than 20 files"):
        agent.propose(History(), "base", SOURCE)
