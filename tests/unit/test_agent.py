"""The agent researcher before and around a visit: its program, its price, its environment."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
from askers import HashedAgent, MemoryLedger, make_desk

from autoresearch.search.history import History
from autoresearch.search.researchers.agent import AgentResearcher
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
