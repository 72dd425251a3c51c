"""Researchers propose the next edit of train.py. `make_researcher` picks one by its name.

A researcher is a function of the history: built anew after a crash, it proposes what it would have
proposed. It keeps nothing of its own between sessions. One that asks a model never ends the loop by
an error: `ask` is the last net below its own checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from autoresearch.search.history import History
from autoresearch.values.config import RESEARCHERS, ResearcherSettings
from autoresearch.values.errors import AutoresearchError, UserError
from autoresearch.values.records import Proposal
from autoresearch.values.text import secrets_of, telling

if TYPE_CHECKING:
    from autoresearch.search.branch import Branch
    from autoresearch.search.ledger import Ledger
    from autoresearch.values.config import Config


class Exhausted(AutoresearchError):
    """The researcher has nothing left to propose; the session ends in good order."""


class Unusable(AutoresearchError):
    """No proposal came of this turn; the session writes it down as a refusal and asks again.

    `kind` is a word for programs, the message says why, `edit` is what there was of an edit.
    """

    def __init__(self, kind: str, reason: str, *, description: str = "", edit: str = "") -> None:
        super().__init__(reason)
        self.kind = kind
        self.description = description
        self.edit = edit

    def as_proposal(self, researcher: str, parent: str) -> Proposal:
        """What the ledger books this turn under."""
        words = self.description or "no proposal"
        return Proposal(source="", description=words, parent=parent, researcher=researcher)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What a researcher that asks a model reads and writes beside the history."""

    config: Config
    ledger: Ledger  # for what calls cost
    branch: Branch  # for diffs, and the files of a commit
    root: Path  # the workspace, for program.md
    runs_folder: Path  # for what candidates printed
    environment: Mapping[str, str]  # the only place of keys

    @property
    def passed_variables(self) -> list[str]:
        """Names of the variables that the owner passes on to an agent."""
        return list(filter(None, map(str.strip, self.config.agent.variables.split(","))))

    def secrets(self, *names: str) -> tuple[str, ...]:
        """Values that no model, ledger or commit may repeat: of `names` and all that are keys."""
        known = (self.config.llm.key_variable, *self.passed_variables)
        return secrets_of(self.environment, (*known, *names))


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
            Unusable: no proposal came of this turn; the history will tell of it.
            UserError: the source gives this researcher nothing to work on.
        """


def ask(researcher: Researcher, history: History, champion_source: str) -> Proposal:
    """What `researcher` proposes; an error that nobody foresaw is a refusal if it asks a model.

    Raises:
        As `Researcher.propose`.
    """
    try:
        return researcher.propose(history, history.champion, champion_source)
    except AutoresearchError:
        raise
    except Exception as error:
        if not hasattr(researcher, "secrets"):
            raise
        said = telling(str(error), secrets_of_asking(researcher))
        reason = f"the researcher failed: {type(error).__name__}: {said}"
        raise Unusable("broken", reason) from error


def secrets_of_asking(researcher: Researcher) -> tuple[str, ...]:
    """The keys that a researcher has; those which ask no model have none, and no such attribute."""
    found: tuple[str, ...] = getattr(researcher, "secrets", ())
    return found


def make_researcher(
    settings: ResearcherSettings, folder: Path | None = None, desk: Desk | None = None
) -> Researcher:
    """The researcher that `settings.kind` names; relative paths start at `folder`.

    Those that ask a model need a `desk`.

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
        from autoresearch.search.researchers.scripted import ScriptedResearcher, find_script

        return ScriptedResearcher(find_script(settings.script, folder or Path()))
    if settings.kind in RESEARCHERS and desk is not None:
        return _make_asking(settings, desk)
    raise UserError(
        f"researcher.kind is {settings.kind!r}, expected one of "
        f"{', '.join(map(repr, RESEARCHERS))}; set it in autoresearch.toml or by --researcher"
    )


def _make_asking(settings: ResearcherSettings, desk: Desk) -> Researcher:
    kind = desk.config.hybrid.partner if settings.kind == "hybrid" else settings.kind
    partner: Researcher
    if kind == "llm":
        from autoresearch.search.researchers.llm import LlmResearcher

        partner = LlmResearcher(desk, seed=settings.seed)
    else:
        from autoresearch.search.researchers.agent import AgentResearcher

        partner = AgentResearcher(desk)
    from autoresearch.search.researchers.hybrid import HybridResearcher, ThriftyResearcher

    if desk.config.spending.then == "tpe":
        partner = ThriftyResearcher(partner, desk.ledger, seed=settings.seed)
    if settings.kind != "hybrid":
        return partner
    return HybridResearcher(partner, share=desk.config.hybrid.share, seed=settings.seed)
