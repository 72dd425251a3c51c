"""What every researcher must do, whichever it is: the session relies on nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from askers import make_agent, make_hybrid, make_llm

from autoresearch.search.history import Event, Fold, History
from autoresearch.search.proposal import check_proposal
from autoresearch.search.researchers import Exhausted, Researcher
from autoresearch.search.researchers.cmaes import CmaesResearcher
from autoresearch.search.researchers.random import RandomResearcher
from autoresearch.search.researchers.scripted import ScriptedEdit, ScriptedResearcher
from autoresearch.search.researchers.tpe import TpeResearcher
from autoresearch.values.constants import fingerprint, parse_constants
from autoresearch.values.records import (
    Decision,
    Measurement,
    Outcome,
    Purpose,
    Verdict,
    to_json,
)

SOURCE = """
RATE = 0.02  # step size [0.001, 1.0] log
DEPTH = 2  # blocks [1, 12]
BATCH = 32  # rows [8, 512] log
PATTERN = "SL"  # windows {"SL", "L", "SSL"}


def build_model(run): ...


def main(run): ...
"""
NUM_TRIALS = 14  # past the point where tpe hands over to its estimator


def make_scripted() -> Researcher:
    """A script long enough for these tests."""
    return ScriptedResearcher(
        [ScriptedEdit(constants={"RATE": 0.03 + n / 1000}) for n in range(NUM_TRIALS + 2)]
    )


MAKERS: dict[str, Callable[[], Researcher]] = {
    "random": lambda: RandomResearcher(seed=7),
    "tpe": lambda: TpeResearcher(seed=7),
    "cmaes": lambda: CmaesResearcher(seed=7),
    "scripted": make_scripted,
    "llm": make_llm,
    "agent": make_agent,
    "hybrid": make_hybrid,
}


@pytest.fixture(params=list(MAKERS))
def make(request: pytest.FixtureRequest) -> Callable[[], Researcher]:
    """A factory for each researcher."""
    return MAKERS[request.param]


class Game:
    """A session without machines: verdicts by lot, a crash now and then, sometimes a keep."""

    def __init__(self) -> None:
        self.fold = Fold()
        self.source = SOURCE
        self.rng = random.Random(3)
        constants = {name: c.value for name, c in parse_constants(SOURCE).items()}
        self.add(
            "start_session", branch="b", baseline="base", config={}, host={}, constants=constants
        )
        for _ in range(6):
            self.run("base", Purpose.CALIBRATE, None)

    @property
    def history(self) -> History:
        """Everything so far."""
        return self.fold.history()

    def add(self, kind: str, **body: object) -> None:
        """One event."""
        self.fold.add(Event(seq=self.fold.seq + 1, at=0.0, kind=kind, body=body))

    def run(self, commit: str, purpose: Purpose, trial_id: int | None) -> None:
        """One scored run."""
        run_id = self.history.next_run_id
        run = Measurement(
            run_id=run_id, commit=commit, purpose=purpose, seed=run_id, outcome=Outcome.SCORED,
            val_bpb=2 + self.rng.random() / 10,
        )  # fmt: skip
        self.add("record_run", run=to_json(run), trial_id=trial_id)

    def play(self, researcher: Researcher) -> None:
        """One trial."""
        proposal = researcher.propose(self.history, self.history.champion, self.source)
        assert check_proposal(proposal.source, self.source, self.history) is None
        trial_id = self.fold.next_trial_id
        commit = f"c{trial_id}"
        body = to_json(proposal)
        del body["source"]
        tree = fingerprint(proposal.source)
        self.add("open_trial", trial_id=trial_id, commit=commit, fingerprint=tree, **body)
        verdict = Verdict.CRASH if trial_id % 5 == 4 else Verdict.DISCARD
        if trial_id % 6 == 3:
            verdict = Verdict.KEEP
        decision = Decision(verdict=verdict, reason="by lot")
        if verdict is not Verdict.CRASH:
            self.run(commit, Purpose.SCREEN, trial_id)
            gain = self.rng.uniform(-0.1, 0.1)
            decision = Decision(verdict=verdict, reason="by lot", val_bpb=2.0, gain_bpb=gain)
        self.add("close_trial", trial_id=trial_id, decision=to_json(decision))
        if verdict is Verdict.KEEP:
            self.add("crown", commit=commit, trial_id=trial_id)
            self.source = proposal.source
            self.run(commit, Purpose.CHAMPION, None)


def test_proposals_are_worth_a_run(make: Callable[[], Researcher]) -> None:
    """Each parses, changes the program, was not tried before, names parent and researcher."""
    game, researcher = Game(), make()
    for _ in range(NUM_TRIALS):
        champion = game.history.champion
        game.play(researcher)
        trial = game.history.trials[-1]
        assert trial.parent == champion
        assert trial.researcher == researcher.name
        assert 0 < len(trial.description) < 400
        assert "\n" not in trial.description


def test_a_resumed_session_proposes_the_same(make: Callable[[], Researcher]) -> None:
    """A new researcher with the same history proposes what the old one would have."""
    game, researcher = Game(), make()
    for _ in range(NUM_TRIALS):
        history = game.history
        expected = researcher.propose(history, history.champion, game.source)
        assert make().propose(history, history.champion, game.source) == expected
        game.play(researcher)


def test_a_refused_proposal_is_not_made_again(make: Callable[[], Researcher]) -> None:
    """A refusal counts as a turn: the next proposal is another one."""
    game = Game()
    first = make().propose(game.history, "base", SOURCE)
    game.add(
        "refuse_proposal", researcher=first.researcher, description=first.description, reason="no"
    )
    second = make().propose(game.history, "base", SOURCE)
    assert second.source != first.source


def test_the_history_is_only_read(make: Callable[[], Researcher]) -> None:
    """A proposal leaves no trace in the history or in the random state of others."""
    game = Game()
    for _ in range(10):
        game.play(make())
    history, state = game.history, random.getstate()
    before = (history.trials, history.runs, dict(history.fingerprints))
    make().propose(history, history.champion, game.source)
    assert (history.trials, history.runs, dict(history.fingerprints)) == before
    assert random.getstate() == state


def test_exhausted_is_the_only_way_to_end() -> None:
    """A researcher that has nothing left says so by its own exception."""
    with pytest.raises(Exhausted):
        ScriptedResearcher([]).propose(History(), "base", SOURCE)
