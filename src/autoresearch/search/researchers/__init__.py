"""Researchers propose the next edit of train.py. `make_researcher` picks one by its name.

A researcher is a function of the history: built anew after a crash, it proposes what it would have
proposed. It keeps nothing of its own between sessions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from autoresearch.search.history import History
from autoresearch.values.config import ResearcherSettings
from autoresearch.values.errors import AutoresearchError, UserError
from autoresearch.values.records import Proposal


class Exhausted(AutoresearchError):
    """The researcher has nothing left to propose; the session ends in good order."""


class Researcher(Protocol):
    """Whoever proposes edits."""

    @property
    def name(self) -> str:
        """As written in the ledger beside each trial."""

    def propose(self, history: History, champion_commit: str, champion_source: str) -> Proposal:
        """The next edit on top of the champion.

        Args:
            history: everything so far; refused proposals count as turns too.
            champion_commit: becomes the proposal's parent.
            champion_source: train.py at that commit.

        Raises:
            Exhausted: there is nothing left to propose.
            UserError: the source gives this researcher nothing to work on.
        """


def make_researcher(settings: ResearcherSettings, folder: Path | None = None) -> Researcher:
    """The researcher that `settings.kind` names; relative paths start at `folder`.

    Raises:
        UserError: there is none of that name, or its settings make no sense.
    """
    if settings.kind == "random":
        from autoresearch.search.researchers.random import RandomResearcher

        return RandomResearcher(seed=settings.seed)
    if settings.kind == "tpe":
        from autoresearch.search.researchers.tpe import TpeResearcher

        return TpeResearcher(seed=settings.seed)
    if settings.kind == "cmaes":
        from autoresearch.search.researchers.cmaes import CmaesResearcher

        return CmaesResearcher(seed=settings.seed)
    if settings.kind == "scripted":
        from autoresearch.search.researchers.scripted import ScriptedResearcher

        return ScriptedResearcher((folder or Path()) / settings.script)
    raise UserError(
        f"researcher.kind is {settings.kind!r}, expected one of 'tpe', 'cmaes', 'random', "
        "'scripted'; mend it in autoresearch.toml"
    )
