"""Independent draws of all searchable constants: what a cleverer search must beat."""

from __future__ import annotations

import random

from autoresearch.search.history import History
from autoresearch.search.researchers.space import draw, propose_values, searchable_constants
from autoresearch.values.records import Proposal


class RandomResearcher:
    """Draws every constant anew for each proposal; the same seed and history give the same draw."""

    name = "random"

    def __init__(self, *, seed: int = 0) -> None:
        self._seed = seed

    def propose(self, history: History, champion_commit: str, champion_source: str) -> Proposal:
        """All constants drawn independently of each other and of what was measured."""
        constants = searchable_constants(champion_source)
        rng = random.Random(f"{self._seed}/{history.num_proposals}")  # noqa: S311 - no secret

        def draw_all() -> dict[str, object]:
            return {name: draw(constant, rng) for name, constant in constants.items()}

        return propose_values(self.name, history, (champion_commit, champion_source), draw_all)
