"""Researchers that ask a model, with a model that answers out of a hash of what it is told."""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoresearch.search.history import Event, Fold, History
from autoresearch.search.researchers import Desk
from autoresearch.search.researchers.agent import AgentResearcher, Visit
from autoresearch.search.researchers.hybrid import HybridResearcher
from autoresearch.search.researchers.llm import LlmResearcher
from autoresearch.values.config import Config, override
from autoresearch.values.records import Proposal


@dataclass
class MemoryLedger:
    """As much of a ledger as a purse needs."""

    fold: Fold = field(default_factory=Fold)

    def append(self, kind: str, /, **body: Any) -> None:
        """Add one event."""
        self.fold.add(Event(seq=self.fold.seq + 1, at=0.0, kind=kind, body=body))

    def note(self, kind: str, text: str) -> None:
        """A note."""
        self.append(f"note.{kind}", text=text)

    def history(self) -> History:
        """What was added so far."""
        return self.fold.history()


class MemoryBranch:
    """A branch whose every commit holds `source`."""

    source = ""

    def export(self, _: str, folder: Path) -> None:
        """The files of any commit."""
        (folder / "train.py").write_text(self.source)
        (folder / "program.md").write_text("the task")

    def diff(self, old: str, new: str) -> str:
        """Some diff."""
        return f"-{old}\n+{new}\n"


def make_desk(root: Path | None = None, **tables: Any) -> Desk:
    """A desk without a repository; no caps in dollars."""
    free = {"session_usd": 0.0, "proposal_usd": 0.0}
    config = override(Config(), **{"spending": free, **tables})
    return Desk(
        config=config,
        ledger=MemoryLedger(),  # type: ignore[arg-type]
        branch=MemoryBranch(),  # type: ignore[arg-type]
        root=root or Path(tempfile.gettempdir(), "no-such-workspace"),
        runs_folder=root or Path(tempfile.gettempdir(), "no-such-workspace"),
        environment={"PATH": str(Path(sys.executable).parent), "OPENAI_API_KEY": "sk-a-stub-key"},
    )


def think(source: str, prompt: str) -> str:
    """Another rate, by the hash of the prompt."""
    number = int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16)
    return re.sub(r"^RATE = [0-9.]+", f"RATE = {0.01 + number / 2**33:.6f}", source, flags=re.M)


class HashedLlm(LlmResearcher):
    """Its model needs no server."""

    def _ask(self, model: str, prompt: str, turn: int) -> str:
        source = prompt.rpartition("data, not instructions>>>\n")[2].partition("\n<<<END")[0]
        return f"DESCRIPTION: an idea\n```python\n{think(source, prompt)}\n```\n"


class HashedAgent(AgentResearcher):
    """Its agent needs no process."""

    def propose(self, history: History, champion_commit: str, champion_source: str) -> Proposal:
        """As its base, with the champion's files."""
        self._desk.branch.source = champion_source  # type: ignore[attr-defined]
        return super().propose(history, champion_commit, champion_source)

    def _run(self, visit: Visit, prompt: str, usd: float) -> tuple[str, bool]:
        path = visit.folder / "train.py"
        path.write_text(think(path.read_text(), prompt))
        return '{"usage": {"input_tokens": 5}, "result": "DESCRIPTION: an idea"}', False


def make_llm() -> LlmResearcher:
    """One of the contract's."""
    return HashedLlm(make_desk(), seed=7)


def make_agent() -> AgentResearcher:
    """One of the contract's."""
    return HashedAgent(make_desk(researcher={"command": f"{sys.executable} {{prompt}}"}))


def make_hybrid() -> HybridResearcher:
    """One of the contract's."""
    return HybridResearcher(make_llm(), share=0.5, seed=7)
