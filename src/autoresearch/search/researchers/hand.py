"""One edit that somebody made: a person, or an agent that owns its own loop.

The session that judges it is like any other; this researcher hands the edit in and then has no
more.
"""

from __future__ import annotations

from autoresearch.search.history import History
from autoresearch.search.researchers import Exhausted
from autoresearch.values.records import Proposal


class HandResearcher:
    """Proposes `source` once, on top of the champion."""

    name = "hand"

    def __init__(self, source: str, description: str) -> None:
        self.source = source
        self.description = description
        self._is_spent = False

    def propose(self, history: History, champion_commit: str, champion_source: str) -> Proposal:
        """The edit.

        Raises:
            Exhausted: it was handed in before; if no trial came of it, it was turned down.
        """
        if self._is_spent:
            raise Exhausted("the edit was turned down")
        self._is_spent = True
        return Proposal(
            source=self.source,
            description=self.description,
            parent=champion_commit,
            researcher=self.name,
        )
