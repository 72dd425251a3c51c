"""Confirmation's pure half: order of runs, levels, verdicts, when it is due, when refused."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoresearch.search.confirm import (
    ArmNeed,
    HoldoutQuestion,
    chance_of_luck,
    confirmation_due,
    judge_holdout,
    judge_validation,
    level_of,
    next_confirm_step,
    refusal,
)
from autoresearch.search.history import Crown, History
from autoresearch.values.config import Config, ConfirmSettings, override
from autoresearch.values.records import (
    Confirmation,
    Decision,
    Measurement,
    Outcome,
    Purpose,
    Verdict,
)

FIVE = ConfirmSettings()
IN_HAND = Confirmation(number=1, champion="new", reference="old", trial_id=3, at=0.0)
OLD = (2.00, 2.01, 1.99, 2.005, 1.995)
NEW = (1.90, 1.91, 1.89, 1.905, 1.895)
SCORES = st.floats(0.5, 4.0)


def make_run(
    run_id: int, commit: str, score: float | None = 2.0, outcome: Outcome = Outcome.SCORED
) -> Measurement:
    """A run of one arm."""
    return Measurement(
        run_id=run_id,
        commit=commit,
        purpose=Purpose.CONFIRM,
        seed=run_id,
        outcome=outcome,
        reason="" if outcome is Outcome.SCORED else "it broke",
        val_bpb=score if outcome is Outcome.SCORED else None,
    )


def step(
    *runs: Measurement, lost: frozenset[int] = frozenset(), **changes: Any
) -> ArmNeed | HoldoutQuestion | Decision:
    """What follows these runs; the weights of all but the `lost` ones are there."""
    confirmation = dataclasses.replace(IN_HAND, runs=runs, **changes)
    usable = frozenset(run.run_id for run in runs) - lost
    return next_confirm_step(FIVE, confirmation, usable)


def both_arms(old: tuple[float, ...] = OLD, new: tuple[float, ...] = NEW) -> list[Measurement]:
    """Five runs of each, numbered as they would be."""
    runs = [make_run(n, "old", score) for n, score in enumerate(old)]
    return [*runs, *(make_run(10 + n, "new", score) for n, score in enumerate(new))]


def test_runs_come_in_the_order_abba() -> None:
    """A B, B A, A B, B A, A B with A the reference; then the question."""
    runs: list[Measurement] = []
    order = ""
    while isinstance(need := step(*runs), ArmNeed):
        order += "A" if need.arm == "reference" else "B"
        commit, scores = ("old", OLD) if need.arm == "reference" else ("new", NEW)
        runs.append(make_run(len(runs), commit, scores[len(runs) // 2]))
    assert order == "ABBAABBAAB"
    assert isinstance(need, HoldoutQuestion)
    assert need.least_gain_bpb == pytest.approx(0.05)


def test_a_run_that_lost_its_weights_is_made_again() -> None:
    """Its score was not looked at, so nothing is selected; likewise disturbed ones."""
    runs = both_arms()
    need = step(*runs, lost=frozenset({3}))
    assert isinstance(need, ArmNeed)
    assert need.arm == "reference"
    disturbed = [*runs[:-1], make_run(14, "new", outcome=Outcome.DISTURBED)]
    need = step(*disturbed)
    assert isinstance(need, ArmNeed)
    assert need.why == "confirmation: run 5 of 5 of the champion"


def test_only_what_passes_on_validation_is_shown_to_the_holdout() -> None:
    """No gain, or one that luck could give: a verdict, and the holdout stays closed."""
    worse = step(*both_arms(OLD, tuple(x + 0.2 for x in OLD)))
    noisy = step(*both_arms(OLD, (1.9, 2.1, 1.95, 2.05, 1.97)))
    for answer, words in ((worse, "no gain"), (noisy, "allows only 0.0061")):
        assert isinstance(answer, Decision)
        assert answer.verdict is Verdict.UNCONFIRMED
        assert words in answer.reason
        assert answer.reason.endswith("The holdout was not asked")


def test_reasons_read_like_sentences() -> None:
    """Scores, the chance of luck, the level; of the holdout only its bit."""
    question = step(*both_arms())
    assert isinstance(question, HoldoutQuestion)
    yes, no = judge_holdout(question, True), judge_holdout(question, False)
    assert yes.reason == (
        "5 fresh runs of the champion scored 1.9000, 5 of the reference old in turn 2.0000: "
        "0.1000 lower. Luck alone would do that with probability 2e-08; confirmation 1 allows "
        "0.0061. The sealed holdout agrees"
    )
    assert yes.verdict is Verdict.CONFIRMED
    assert no.verdict is Verdict.UNCONFIRMED
    assert "less than half of the gain" in no.reason


@pytest.mark.parametrize("outcome", [Outcome.CRASH, Outcome.TIMEOUT, Outcome.CHEAT])
def test_a_champion_that_fails_is_not_confirmed(outcome: Outcome) -> None:
    """At once; a reference that fails is run again, three times at most."""
    answer = step(make_run(1, "old"), make_run(2, "new", outcome=outcome))
    assert isinstance(answer, Decision)
    assert answer.verdict is Verdict.UNCONFIRMED
    assert f"ended as {outcome.value}: it broke" in answer.reason
    failed = [make_run(n, "old", outcome=outcome) for n in (1, 2, 3)]
    assert isinstance(step(*failed[:2]), ArmNeed)
    assert isinstance(step(*failed), Decision)


def test_a_machine_that_stays_disturbed_ends_it() -> None:
    """Not judged, said so, and the session goes on."""
    runs = [make_run(n, "old", outcome=Outcome.DISTURBED) for n in range(12)]
    assert isinstance(step(*runs[:11]), ArmNeed)
    answer = step(*runs)
    assert isinstance(answer, Decision)
    assert "the machine disturbed 12 runs" in answer.reason


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_confirms_nothing(score: float) -> None:
    """Neither as a run nor in the test itself."""
    answer = step(*both_arms(OLD, (*NEW[:4], score)))
    assert isinstance(answer, Decision)
    assert answer.verdict is Verdict.UNCONFIRMED
    assert chance_of_luck(OLD, (*NEW[:4], score)) == 1.0
    assert chance_of_luck((*OLD[:4], score), NEW) == 1.0


def test_a_champion_that_ignores_its_seed_is_not_confirmed() -> None:
    """Five equal scores are one score: its luck with the seed cannot be told."""
    answer = step(*both_arms(OLD, (1.5,) * 5))
    assert isinstance(answer, Decision)
    assert answer.verdict is Verdict.UNCONFIRMED
    assert "whatever the seed" in answer.reason


def test_levels_add_up_to_one_percent() -> None:
    """Over however many confirmations; each asks for more than the one before."""
    levels = [level_of(k) for k in range(1, 20_000)]
    assert levels[0] == pytest.approx(0.01 * 6 / math.pi**2)
    assert levels == sorted(levels, reverse=True)
    assert sum(levels) == pytest.approx(0.01, rel=1e-4)


def test_a_later_confirmation_asks_for_more() -> None:
    """What passes as the first may fail as the hundredth."""
    new = (1.985, 1.975, 1.97, 1.98, 1.972)
    first = judge_validation(IN_HAND, OLD, new)
    later = judge_validation(dataclasses.replace(IN_HAND, number=100), OLD, new)
    assert (first.verdict, later.verdict) == (Verdict.CONFIRMED, Verdict.UNCONFIRMED)


def make_history(*champions: str, **changes: Any) -> History:
    """A branch whose baseline is "base" and whose champions followed each other."""
    crowns = tuple(
        Crown(seq=n, at=0.0, commit=c, trial_id=n) for n, c in enumerate(champions, start=1)
    )
    return History(
        baseline="base",
        champion=champions[-1] if champions else "base",
        crowns=crowns,
        **changes,
    )


def closed(champion: str, verdict: Verdict = Verdict.UNCONFIRMED) -> Confirmation:
    """A confirmation with its verdict."""
    decision = Decision(verdict=verdict, reason="")
    return dataclasses.replace(IN_HAND, champion=champion, decision=decision)


@pytest.mark.parametrize(
    ("level", "least", "is_refused"),
    [
        ("none", "landlock", True),
        ("landlock", "landlock", False),
        ("bubblewrap", "landlock", False),
        ("landlock", "bubblewrap", True),
        ("none", "none", False),
    ],
)
def test_refused_below_the_sandbox_level(level: str, least: str, is_refused: bool) -> None:
    """The message says which level is there and which is asked for."""
    config = override(Config(), confirm={"least_sandbox": least})
    reason = refusal(config, make_history("a"), level)
    assert bool(reason) is is_refused
    assert not is_refused or (level in reason and least in reason)
    assert bool(confirmation_due(config, make_history("a"), level, is_end=True)) is not is_refused


def test_refused_where_there_is_nothing_to_confirm_or_no_question_left() -> None:
    """The baseline, a confirmed champion, a holdout asked as often as allowed."""
    config = Config()
    assert "nothing was kept" in refusal(config, make_history(), "bubblewrap")
    done = make_history("a", confirmations=(closed("a", Verdict.CONFIRMED),))
    assert "confirmed already" in refusal(config, done, "bubblewrap")
    worn = make_history("a", num_holdout_queries=20)
    assert "20 times" in refusal(config, worn, "bubblewrap")
    asked = dataclasses.replace(IN_HAND, champion="a", asked_holdout=True)
    going_on = dataclasses.replace(worn, confirmations=(asked,))
    assert refusal(config, going_on, "bubblewrap") == ""


def test_due_at_the_end_every_so_many_keeps_and_where_one_was_cut_off() -> None:
    """Once a champion; after each keep under confirm-all; at the end only if configured."""
    config = override(Config(), confirm={"at_end": False, "every_keeps": 3})

    def due(history: History, is_end: bool = False, rules: Config = config) -> bool:
        return bool(confirmation_due(rules, history, "bubblewrap", is_end=is_end))

    assert not due(make_history("a", "b"))
    assert due(make_history("a", "b", "c"))
    before = (closed("b"),)
    assert not due(make_history("a", "b", "c", "d", confirmations=before))
    assert due(make_history("a", "b", "c", "d", "e", confirmations=before))
    assert not due(make_history("a", "b", confirmations=before), is_end=True)
    assert not due(make_history("a"), is_end=True)
    at_end = override(config, confirm={"at_end": True})
    assert due(make_history("a"), is_end=True, rules=at_end)
    assert not due(make_history("a"), rules=at_end)
    assert not due(make_history("b", confirmations=before), is_end=True, rules=at_end)
    assert due(make_history("a"), rules=override(config, judge={"policy": "confirm-all"}))
    assert due(make_history("a", confirmations=(dataclasses.replace(IN_HAND, champion="a"),)))


@given(
    old=st.lists(SCORES, min_size=5, max_size=5),
    new=st.lists(SCORES, min_size=5, max_size=5),
    which=st.integers(0, 4),
    shift=st.floats(0.01, 0.4),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_what_holds_of_the_verdict_whatever_the_scores(
    old: list[float], new: list[float], which: int, shift: float, order: random.Random
) -> None:
    """Order changes nothing, arms are mirror images, a lower champion is never less sure."""

    def judged(a: list[float], b: list[float]) -> Decision:
        return judge_validation(IN_HAND, a, b)

    decision = judged(old, new)
    shuffled = [order.sample(old, 5), order.sample(new, 5)]
    again = judged(*shuffled)
    assert again.verdict is decision.verdict
    assert again.gain_bpb == pytest.approx(decision.gain_bpb)
    assert decision.gain_bpb == -(judged(new, old).gain_bpb or 0.0)
    if len(set(old)) > 1 or len(set(new)) > 1:
        assert chance_of_luck(old, new) + chance_of_luck(new, old) == pytest.approx(1.0)
    lower = [score - shift for score in new]
    assert chance_of_luck(old, lower) <= chance_of_luck(old, new) + 1e-12
    if decision.verdict is Verdict.CONFIRMED:
        assert judged(old, lower).verdict is Verdict.CONFIRMED
        assert judged(new, old).verdict is Verdict.UNCONFIRMED
    assert judged(old, old).verdict is Verdict.UNCONFIRMED
