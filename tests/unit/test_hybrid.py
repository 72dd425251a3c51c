"""tpe and a model side by side."""

from __future__ import annotations

import random
from typing import Any

from askers import MemoryLedger

from autoresearch.search.history import History, RefusedProposal
from autoresearch.search.researchers import Exhausted
from autoresearch.search.researchers.hybrid import (
    HybridResearcher,
    ThriftyResearcher,
    constants_moved,
    describe_search,
)
from autoresearch.values.records import Proposal

SOURCE = "RATE = 0.02  # step size [0.001, 1.0] log\nDEPTH = 2  # blocks [1, 12]\nNAME = 3\n"


class Broke:
    """A partner that is out of money."""

    name = "llm"
    extra = ""

    def propose(self, *_: Any) -> Proposal:
        """Never."""
        raise Exhausted("the session has used 1 of spending.session_usd = 1")


def test_the_share_decides_who_proposes() -> None:
    """None, all, and about a third of the turns."""
    for share, least, most in ((0.0, 0, 0), (1.0, 60, 60), (0.3, 8, 30)):
        researcher = HybridResearcher(Broke(), share=share, seed=1)  # type: ignore[arg-type]
        count = sum(
            researcher._is_models_turn(History(refusals=(_refusal(),) * turn)) for turn in range(60)
        )
        assert least <= count <= most


def _refusal() -> RefusedProposal:
    return RefusedProposal(seq=1, at=0, researcher="hybrid", description="", reason="")


def test_constants_go_to_the_estimator() -> None:
    """An edit of ranges alone is booked as a point; any other is structure."""
    moved = SOURCE.replace("0.02", "0.04")
    assert constants_moved(SOURCE, moved) == {"RATE": 0.04, "DEPTH": 2}
    assert constants_moved(SOURCE, moved + "def more(): ...\n") is None
    assert constants_moved(SOURCE, SOURCE.replace("NAME = 3", "NAME = 4")) is None
    assert constants_moved(SOURCE, "RATE = (") is None


def test_without_money_tpe_goes_on_and_says_so_once() -> None:
    """Under its own name, so that nobody takes its trials for the model's."""
    ledger = MemoryLedger()
    researcher = ThriftyResearcher(Broke(), ledger, seed=1)  # type: ignore[arg-type]
    for _ in range(2):
        proposal = researcher.propose(ledger.history(), "base", SOURCE)
        assert proposal.researcher == "tpe"
    (note,) = ledger.history().notes
    assert note.body["text"].endswith("session_usd = 1; tpe goes on alone")


def test_the_model_sees_what_the_estimator_knows() -> None:
    """Names of the constants and how many points there are, without touching random state."""
    state = random.getstate()
    text = describe_search(History(), SOURCE)
    assert "it has 0 points" in text
    assert "val_bpb RATE DEPTH" in text
    assert random.getstate() == state
