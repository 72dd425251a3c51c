"""tpe and a model side by side: tpe moves the constants, the model changes the structure.

A share of the proposals, drawn from the seed and the turn, goes to the model, which is shown what
the estimator knows. An edit of the model that changes nothing but searchable constants counts as a
point of the estimator's: it is booked with its parameters, so that tpe learns from it.

A model that has used up its caps does not end the session: tpe goes on alone (spending.then).
"""

from __future__ import annotations

import dataclasses
import random
from typing import Protocol

from autoresearch.search.briefing import is_retry, turn_of
from autoresearch.search.history import History
from autoresearch.search.ledger import Ledger
from autoresearch.search.researchers import Exhausted, Researcher, secrets_of_asking
from autoresearch.search.researchers.tpe import TpeResearcher, known_points
from autoresearch.values.constants import fingerprint, parse_constants, substitute
from autoresearch.values.errors import UserError
from autoresearch.values.records import Proposal
from autoresearch.values.text import fence

_BEST, _WORST = 8, 3


class Partner(Researcher, Protocol):
    """A researcher that asks a model."""

    extra: str


class ThriftyResearcher:
    """Its partner as long as there is money, then tpe, which costs none."""

    def __init__(self, partner: Researcher, ledger: Ledger, *, seed: int = 0) -> None:
        self.name = partner.name
        self.extra = ""
        self.secrets = secrets_of_asking(partner)
        self._partner: Partner = partner  # type: ignore[assignment]
        self._ledger = ledger
        self._tpe = TpeResearcher(seed=seed)

    def propose(self, history: History, champion_commit: str, champion_source: str) -> Proposal:
        """The partner's edit, or tpe's where the partner's caps are met."""
        self._partner.extra = self.extra
        try:
            return self._partner.propose(history, champion_commit, champion_source)
        except Exhausted as reason:
            if not any(n.kind == "note.spent" and n.seq > history.began_seq for n in history.notes):
                self._ledger.note("spent", f"{reason}; tpe goes on alone")
            return self._tpe.propose(history, champion_commit, champion_source)


class HybridResearcher:
    """Proposes as tpe or as its partner."""

    name = "hybrid"

    def __init__(self, partner: Researcher, *, share: float = 0.3, seed: int = 0) -> None:
        self.secrets = secrets_of_asking(partner)
        self._partner: Partner = partner  # type: ignore[assignment]
        self._share = share
        self._seed = seed
        self._tpe = TpeResearcher(seed=seed)

    def propose(self, history: History, champion_commit: str, champion_source: str) -> Proposal:
        """The next edit, by whoever's turn it is."""
        champion = (champion_commit, champion_source)
        proposal = None
        if self._is_models_turn(history):
            self._partner.extra = describe_search(history, champion_source)
            proposal = self._partner.propose(history, *champion)
        if proposal is None:
            proposal = self._tpe.propose(history, *champion)
        elif values := constants_moved(champion_source, proposal.source):
            proposal = dataclasses.replace(proposal, parameters=values)
        return dataclasses.replace(proposal, researcher=self.name)

    def _is_models_turn(self, history: History) -> bool:
        """A retry is the model's own: tpe's proposals are not refused for what they say."""
        turn = turn_of(history)
        rng = random.Random(f"{self._seed}/share/{turn}")  # noqa: S311 - no secret
        return rng.random() < self._share or (is_retry(history) and self._share > 0)


def constants_moved(parent: str, source: str) -> dict[str, object] | None:
    """All searchable constants of `source`, if they are all that it changed; else None."""
    try:
        old, new = parse_constants(parent), parse_constants(source)
        values = {name: constant.value for name, constant in new.items()}
        changes = {
            name: values[name]
            for name, constant in old.items()
            if constant.is_searchable and name in values and values[name] != constant.value
        }
        if not changes or fingerprint(substitute(parent, changes)) != fingerprint(source):
            return None
    except UserError:
        return None
    return {name: values[name] for name, constant in old.items() if constant.is_searchable}


def describe_search(history: History, source: str) -> str:
    """What the estimator knows: its best and worst points, for a model to read."""
    points = sorted(known_points(history), key=lambda point: point[1])
    names = [name for name, c in parse_constants(source).items() if c.is_searchable]
    header = "val_bpb " + " ".join(names)
    chosen = points[:_BEST] + (points[_BEST:][-_WORST:] if len(points) > _BEST else [])
    rows = [
        f"{score:.4f} " + " ".join(str(values.get(name, "-")) for name in names)
        for values, score in chosen
    ]
    return (
        "# The optimizer beside you\n"
        f"A classical optimizer (TPE) moves the constants with a range; it has {len(points)} "
        "points. Leave fine tuning to it: change the structure, or set constants where you see "
        "something that it cannot. Its best points, then its worst:\n"
        + fence("\n".join([header, *rows]), "points of the optimizer", 6000)
    )
