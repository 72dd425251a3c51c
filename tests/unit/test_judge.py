"""The judge: every verdict, its words, and the properties that no noise may break."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoresearch.search.history import History
from autoresearch.search.judge import (
    Need,
    champion_trouble,
    estimate_gain,
    find_pairs,
    is_implausible,
    next_champion_run_due,
    next_step,
    simplification_cost,
)
from autoresearch.search.noise import Noise, agrees
from autoresearch.values.config import JudgeSettings
from autoresearch.values.records import (
    Decision,
    Measurement,
    Outcome,
    Purpose,
    Trial,
    Verdict,
)

RULES = JudgeSettings(implausible_gain_frac=0.9, floor_bpb=0.0)
NOISE = Noise(sigma_bpb=0.010, degrees_of_freedom=10)
FEW = Noise(sigma_bpb=0.010, degrees_of_freedom=3)
PAIRED = Noise(sigma_bpb=0.010, degrees_of_freedom=10, is_paired=True)
LENGTH_S = 10.0
SCORES = st.floats(min_value=0.5, max_value=4.0)


def make_run(
    run_id: int, score: float | None, purpose: Purpose = Purpose.CHAMPION, **changes: object
) -> Measurement:
    """Run number n of a machine that starts a run every ten seconds."""
    fields: dict[str, object] = {
        "run_id": run_id,
        "commit": "champion" if purpose in (Purpose.CHAMPION, Purpose.CALIBRATE) else "candidate",
        "purpose": purpose,
        "seed": run_id,
        "outcome": Outcome.SCORED,
        "val_bpb": score,
        "at": run_id * LENGTH_S,
        "total_s": LENGTH_S,
    }
    return Measurement(**{**fields, **changes})  # type: ignore[arg-type]


def screen(run_id: int, score: float | None, **changes: object) -> Measurement:
    """A candidate's first run."""
    return make_run(run_id, score, Purpose.SCREEN, **changes)


def replicate(run_id: int, score: float | None, **changes: object) -> Measurement:
    """A candidate's second run."""
    return make_run(run_id, score, Purpose.REPLICATE, **changes)


CHAMPION = [make_run(n, 2.0) for n in (1, 2, 3)]


def decide(*runs: Measurement, noise: Noise = NOISE, **options: object) -> Decision:
    """The verdict on candidate runs against a champion that scores 2.0."""
    rules = options.pop("rules", RULES)
    champion = options.pop("champion", CHAMPION)
    answer = next_step(rules, noise, champion, runs, **options)  # type: ignore[arg-type]
    assert isinstance(answer, Decision), answer
    return answer


def ask(*runs: Measurement, noise: Noise = NOISE, **options: object) -> Need:
    """The run that is needed next."""
    rules = options.pop("rules", RULES)
    champion = options.pop("champion", CHAMPION)
    answer = next_step(rules, noise, champion, runs, **options)  # type: ignore[arg-type]
    assert isinstance(answer, Need), answer
    return answer


def test_screen_asks_for_one_run_first() -> None:
    """A trial starts with one fresh run of the candidate."""
    need = ask()
    assert (need.who, need.purpose) == ("candidate", Purpose.SCREEN)


@pytest.mark.parametrize(("score", "words"), [(2.02, "worse"), (2.0, "equals"), (1.995, "less")])
def test_screen_discards_what_is_not_a_sigma_better(score: float, words: str) -> None:
    """Worse, equal, or better by too little: one run, discarded, with the reason."""
    decision = decide(screen(4, score))
    assert decision.verdict is Verdict.DISCARD
    assert words in decision.reason
    assert decision.val_bpb == score


@pytest.mark.parametrize(
    ("second", "verdict"),
    [
        (1.98, Verdict.KEEP),
        (1.99 - 1e-9, Verdict.KEEP),
        (1.995, Verdict.NEAR_MISS),
        (2.0, Verdict.DISCARD),
        (2.1, Verdict.DISCARD),
    ],
)
def test_the_second_run_decides(second: float, verdict: Verdict) -> None:
    """A sigma better again: keep; better but less: near miss; else discard."""
    assert ask(screen(4, 1.95)).purpose is Purpose.REPLICATE
    decision = decide(screen(4, 1.95), replicate(5, second))
    assert decision.verdict is verdict
    assert decision.gain_bpb == pytest.approx(2.0 - second)
    assert decision.sigma_bpb == 0.010


def test_reasons_read_like_sentences() -> None:
    """A keep says by how much, in sigma where that is known, and how many runs say so."""
    reason = decide(screen(4, 1.95), replicate(5, 1.98)).reason
    assert reason == (
        "val_bpb 1.9800 beats the champion's 2.0000 (3 runs) by 0.0200 (2.0 sigma), "
        "after a first run better by 0.0500 (5.0 sigma); kept"
    )


def test_no_statistical_word_under_five_degrees_of_freedom() -> None:
    """With few runs a reason gives differences and numbers of runs only."""
    decisions = [
        decide(screen(4, 1.95), replicate(5, second), noise=FEW) for second in (1.9, 1.995, 2.1)
    ]
    decisions += [decide(screen(4, score), noise=FEW) for score in (1.995, 2.1)]
    runs = [replicate(n, 2.001) for n in (4, 5, 6)]
    decisions.append(decide(*runs, noise=FEW, is_simplification=True))
    greedy = dataclasses.replace(RULES, policy="greedy")
    decisions.append(decide(screen(4, 1.9), noise=FEW, rules=greedy))
    for decision in decisions:
        for word in ("sigma", "signific", "deviation", "confidence", "standard", "p-value"):
            assert word not in decision.reason


def test_confirm_all_asks_for_confirmation() -> None:
    """Same verdicts as screen, and the note that a confirmation is wanted."""
    rules = dataclasses.replace(RULES, policy="confirm-all")
    decision = decide(screen(4, 1.95), replicate(5, 1.95), rules=rules)
    assert decision.verdict is Verdict.KEEP
    assert "confirmation wanted" in decision.reason


def test_greedy_keeps_whatever_is_lower_once() -> None:
    """One run against the champion's best known score, the selecting run included."""
    rules = dataclasses.replace(RULES, policy="greedy")
    selected = make_run(3, 1.9, Purpose.SCREEN, commit="champion")
    champion = [make_run(1, 2.0), selected]
    assert ask(rules=rules, champion=champion).who == "candidate"
    assert decide(screen(4, 1.8999), rules=rules, champion=champion).verdict is Verdict.KEEP
    assert decide(screen(4, 1.95), rules=rules, champion=champion).verdict is Verdict.DISCARD
    equal = screen(4, 1.9)
    assert decide(equal, rules=rules, champion=champion).verdict is Verdict.DISCARD
    simpler = decide(equal, rules=rules, champion=champion, is_simplification=True)
    assert simpler.verdict is Verdict.KEEP
    assert ask(rules=rules, champion=[]).who == "champion"


@pytest.mark.parametrize("policy", ["greedy", "screen", "confirm-all"])
@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (Outcome.CRASH, Verdict.CRASH),
        (Outcome.TIMEOUT, Verdict.TIMEOUT),
        (Outcome.CHEAT, Verdict.CHEAT),
    ],
)
def test_failures_become_their_verdicts(policy: str, outcome: Outcome, verdict: Verdict) -> None:
    """A crash, timeout or cheat has its verdict under every policy, no score and its reason."""
    rules = dataclasses.replace(RULES, policy=policy)
    run = screen(4, None, outcome=outcome, reason="it broke")
    decision = decide(run, rules=rules)
    assert (decision.verdict, decision.val_bpb, decision.reason) == (verdict, None, "it broke")


def test_failure_in_the_second_run_counts() -> None:
    """A candidate that crashes when it is repeated is a crash, said so; a cheat outweighs it."""
    crash = replicate(5, None, outcome=Outcome.CRASH, reason="out of memory")
    decision = decide(screen(4, 1.9), crash)
    assert decision.verdict is Verdict.CRASH
    assert "repeated run" in decision.reason
    cheat = screen(6, None, outcome=Outcome.CHEAT, reason="read ahead")
    assert decide(crash, cheat).verdict is Verdict.CHEAT


@pytest.mark.parametrize("outcome", [Outcome.DISTURBED, Outcome.INTERRUPTED])
def test_disturbed_runs_are_made_again(outcome: Outcome) -> None:
    """A run on an unfit machine is as if it had not been."""
    assert ask(screen(4, 1.0, outcome=outcome)).purpose is Purpose.SCREEN
    assert decide(screen(4, None, outcome=outcome), screen(5, 2.1)).verdict is Verdict.DISCARD


@pytest.mark.parametrize("policy", ["greedy", "screen", "confirm-all"])
@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("is_paired", [True, False])
def test_a_score_that_is_no_number_never_keeps(policy: str, score: float, is_paired: bool) -> None:
    """NaN and infinities are crashes, first run or second."""
    rules = dataclasses.replace(RULES, policy=policy)
    options: dict[str, object] = {"rules": rules, "is_paired": is_paired}
    assert decide(screen(4, score), **options).verdict is Verdict.CRASH  # type: ignore[arg-type]
    second = decide(screen(4, 1.9), replicate(6, score), **options)  # type: ignore[arg-type]
    assert second.verdict is Verdict.CRASH


def test_champion_runs_without_a_score_do_not_count() -> None:
    """A champion's NaN or crash neither helps nor harms a candidate."""
    odd = [
        make_run(7, math.nan),
        make_run(8, None, outcome=Outcome.CRASH),
        make_run(9, 9.0, Purpose.TRAIN),
        make_run(10, 1.0, outcome=Outcome.DISTURBED),
    ]
    reason = decide(screen(11, 1.999), champion=[*CHAMPION, *odd]).reason
    assert "2.0000 (3 runs)" in reason


def test_unknown_noise_asks_for_champion_runs() -> None:
    """Without a measured noise nothing can be judged, and zero noise keeps no equal score."""
    unknown = Noise(sigma_bpb=0.0, degrees_of_freedom=0)
    assert ask(screen(4, 1.0), noise=unknown).who == "champion"
    zero = Noise(sigma_bpb=0.0, degrees_of_freedom=9)
    assert decide(screen(4, 2.0), noise=zero).verdict is Verdict.DISCARD
    assert ask(screen(4, 1.9), champion=[]).who == "champion"


# ---- pairs -------------------------------------------------------------------------------------


def test_neighbouring_trials_share_a_champion_run() -> None:
    """Champion, A, B: both are next to the same run; the third in a row is too far from it."""
    champion = [make_run(6, 2.0, Purpose.CALIBRATE)]
    options: dict[str, object] = {"champion": champion, "is_paired": True, "noise": PAIRED}
    for run_id in (7, 8):
        decision = decide(screen(run_id, 2.1), now=run_id * LENGTH_S + 10, **options)  # type: ignore[arg-type]
        assert decision.verdict is Verdict.DISCARD
        assert "(1 run)" in decision.reason
    need = ask(screen(9, 2.1), now=100.0, **options)  # type: ignore[arg-type]
    assert (need.who, need.purpose) == ("champion", Purpose.CHAMPION)
    after = [*champion, make_run(10, 2.0)]
    options["champion"] = after
    assert decide(screen(9, 2.1), **options).verdict is Verdict.DISCARD  # type: ignore[arg-type]


def test_the_second_run_has_a_champion_run_of_its_own() -> None:
    """The run that let a candidate through the screen is not asked again."""
    champion = [make_run(1, 2.0)]
    options: dict[str, object] = {"champion": champion, "is_paired": True, "noise": PAIRED}
    assert ask(screen(2, 1.9), **options).purpose is Purpose.REPLICATE  # type: ignore[arg-type]
    assert ask(screen(2, 1.9), replicate(3, 1.9), **options).who == "champion"  # type: ignore[arg-type]
    options["champion"] = [*champion, make_run(4, 1.85)]
    decision = decide(screen(2, 1.9), replicate(3, 1.9), **options)  # type: ignore[arg-type]
    assert decision.verdict is Verdict.DISCARD
    assert decision.gain_bpb == pytest.approx(-0.05)


def test_a_champion_run_between_both_runs_serves_the_screen_only() -> None:
    """Candidate, champion, candidate: the middle run was looked at, so one more is needed."""
    champion = [make_run(3, 2.0)]
    runs = (screen(2, 1.9), replicate(4, 1.9))
    assert ask(*runs, champion=champion, is_paired=True, noise=PAIRED).who == "champion"
    champion.append(make_run(5, 2.0))
    decision = decide(*runs, champion=champion, is_paired=True, noise=PAIRED)
    assert decision.verdict is Verdict.KEEP


def test_a_run_left_alone_for_hours_is_made_again() -> None:
    """A session that died after the candidate's run: nothing can be paired with it any more."""
    champion = [make_run(1, 2.0, at=0.0)]
    late = screen(2, 1.9, at=5000.0)
    options: dict[str, object] = {"champion": champion, "is_paired": True, "noise": PAIRED}
    assert ask(late, now=5010.0, **options).who == "champion"  # type: ignore[arg-type]
    need = ask(late, now=90_000.0, **options)  # type: ignore[arg-type]
    assert (need.who, need.purpose) == ("candidate", Purpose.SCREEN)


def test_a_clock_of_no_use_does_not_run_for_ever() -> None:
    """Runs that never seem close in time: after three the nearest in order must do."""
    champion, runs = [make_run(1, 2.0)], []
    jump = 1e6
    for run_id in range(2, 20):
        answer = next_step(
            RULES, PAIRED, champion, runs, is_paired=True, now=run_id * jump, max_gap_s=25.0
        )
        if isinstance(answer, Decision):
            break
        kind = champion if answer.who == "champion" else runs
        score = 2.0 if answer.who == "champion" else 2.1
        kind.append(make_run(run_id, score, answer.purpose, at=run_id * jump))
    assert isinstance(answer, Decision)
    assert answer.verdict is Verdict.DISCARD
    assert len(runs) == 3


def test_a_clock_of_no_use_and_no_champion_run() -> None:
    """With nothing at all to compare with, a champion run is asked for."""
    runs = [screen(n, 1.9, at=n * 1e6) for n in (2, 3, 4)]
    need = ask(*runs, champion=[], is_paired=True, noise=PAIRED, now=9e9, max_gap_s=1.0)
    assert need.who == "champion"


def test_a_discarded_trial_costs_a_run_and_a_third() -> None:
    """Six calibrations and ten hopeless trials, paired: at most 1.5 runs a trial."""
    champion = [make_run(n, 2.0, Purpose.CALIBRATE) for n in range(1, 7)]
    run_id = 7
    for _ in range(10):
        runs: list[Measurement] = []
        while isinstance(
            answer := next_step(
                RULES, PAIRED, champion, runs, is_paired=True, now=run_id * LENGTH_S
            ),
            Need,
        ):
            score = 2.0 if answer.who == "champion" else 2.1
            arm = champion if answer.who == "champion" else runs
            arm.append(make_run(run_id, score, answer.purpose))
            run_id += 1
    assert run_id - 7 <= 15


def test_pairs_are_neighbours_of_opposite_arms() -> None:
    """ABBA gives two pairs; a gap in time breaks one."""
    champion, candidate = [make_run(1, 2.0), make_run(4, 2.0)], [screen(2, 1.9), screen(3, 1.9)]
    pairs = find_pairs(champion, candidate, 25.0)
    assert [(a.run_id, b.run_id) for a, b in pairs] == [(1, 2), (4, 3)]
    assert find_pairs(champion, candidate, 5.0) == []


# ---- simplification ----------------------------------------------------------------------------


def test_simplification_takes_three_runs() -> None:
    """Fewer nodes at no more than half a sigma: kept after three fresh runs, no screen."""
    runs = [replicate(n, 2.004) for n in (4, 5, 6)]
    for num in range(3):
        assert ask(*runs[:num], is_simplification=True).purpose is Purpose.REPLICATE
    decision = decide(*runs, is_simplification=True)
    assert decision.verdict is Verdict.KEEP
    assert "simpler" in decision.reason


def test_simplification_that_costs_too_much_is_discarded() -> None:
    """Worse by more than half a sigma, or more than one sigma together with earlier ones."""
    worse = [replicate(n, 2.006) for n in (4, 5, 6)]
    assert decide(*worse, is_simplification=True).verdict is Verdict.DISCARD
    cheap = [replicate(n, 2.004) for n in (4, 5, 6)]
    spent = decide(*cheap, is_simplification=True, simplification_cost_bpb=0.007)
    assert spent.verdict is Verdict.DISCARD
    assert "together" in spent.reason


def test_simplification_too_good_to_be_true_must_repeat() -> None:
    """A simplification with an implausible gain is kept only where its runs agree."""
    rules = dataclasses.replace(RULES, implausible_gain_frac=0.05)
    apart = [replicate(4, 1.0), replicate(5, 2.0), replicate(6, 1.0)]
    assert decide(*apart, rules=rules, is_simplification=True).verdict is Verdict.DISCARD
    steady = [replicate(n, 1.5) for n in (4, 5, 6)]
    assert decide(*steady, rules=rules, is_simplification=True).verdict is Verdict.KEEP


def test_paired_simplification_alternates() -> None:
    """In pairs, each of the three runs has a champion run beside it."""
    champion, runs, order = [make_run(1, 2.0)], [], ""
    for run_id in range(2, 12):
        answer = next_step(
            RULES, PAIRED, champion, runs, is_paired=True, is_simplification=True,
            now=run_id * LENGTH_S,
        )  # fmt: skip
        if isinstance(answer, Decision):
            break
        order += answer.who[1]
        arm = champion if answer.who == "champion" else runs
        arm.append(make_run(run_id, 2.0, answer.purpose))
    assert isinstance(answer, Decision)
    assert answer.verdict is Verdict.KEEP
    assert order == "aaha"  # candidate, candidate, champion, candidate


def test_cost_of_simplifications_adds_up() -> None:
    """Only kept simplifications after the last confirmed champion count, and only their losses."""

    def trial(trial_id: int, gain: float, **changes: object) -> Trial:
        verdict = changes.pop("verdict", Verdict.KEEP)
        decision = Decision(verdict=verdict, reason="", gain_bpb=gain)  # type: ignore[arg-type]
        fields: dict[str, object] = {
            "trial_id": trial_id, "commit": "c", "parent": "p", "description": "d",
            "researcher": "r", "parameters": None, "is_simplification": True, "at": 0.0,
            "decision": decision,
        }  # fmt: skip
        return Trial(**{**fields, **changes})  # type: ignore[arg-type]

    history = History(
        trials=(
            trial(1, -0.001),
            trial(2, -0.002),
            trial(3, 0.5),
            trial(4, -0.1, verdict=Verdict.DISCARD),
            trial(5, -0.1, is_simplification=False),
            trial(6, 0.0, decision=None),
        )
    )
    assert simplification_cost(history) == pytest.approx(0.003)
    assert simplification_cost(history, after_trial_id=1) == pytest.approx(0.002)


# ---- results too good to be true ---------------------------------------------------------------


def test_implausible_results_are_named() -> None:
    """Under the floor, or a gain over the preset's limit; an ordinary gain is neither."""
    rules = JudgeSettings(implausible_gain_frac=0.05, floor_bpb=0.3)
    assert is_implausible(rules, 1.98, 2.0) == ""
    assert "10.0%" in is_implausible(rules, 1.8, 2.0)
    assert "floor" in is_implausible(rules, 0.2, 0.21)


@pytest.mark.parametrize("policy", ["greedy", "screen"])
def test_implausible_runs_are_repeated_with_the_audit(policy: str) -> None:
    """Rerun once with the full audit, judged if both agree, else discarded with both figures."""
    rules = JudgeSettings(policy=policy, implausible_gain_frac=0.05, floor_bpb=0.3)
    need = ask(screen(4, 1.5), rules=rules)
    assert need.wants_audit
    assert need.purpose is Purpose.REPLICATE
    agreed = decide(screen(4, 1.5), replicate(5, 1.51), rules=rules)
    assert agreed.verdict is Verdict.KEEP
    torn = decide(screen(4, 1.5), replicate(5, 1.9), rules=rules)
    assert torn.verdict is Verdict.DISCARD
    assert "1.9000 instead of 1.5000" in torn.reason
    assert not ask(screen(4, 1.95), rules=dataclasses.replace(rules, policy="screen")).wants_audit


def test_implausible_second_run_must_agree_too() -> None:
    """A modest first run and a miraculous second one are not one and the same model."""
    rules = JudgeSettings(implausible_gain_frac=0.05, floor_bpb=0.3)
    assert decide(screen(4, 1.95), replicate(5, 1.0), rules=rules).verdict is Verdict.DISCARD


def test_agreement_is_three_sigma_of_a_difference() -> None:
    """The same limit for paired and unpaired noise that describe the same machine."""
    paired = Noise(sigma_bpb=0.01 * math.sqrt(2), degrees_of_freedom=9, is_paired=True)
    for noise in (NOISE, paired):
        assert agrees(noise, 2.0, 2.042)
        assert not agrees(noise, 2.0, 2.043)


# ---- runs that are due between trials ----------------------------------------------------------


def make_trial(trial_id: int, *run_ids: int) -> Trial:
    """A discarded trial with these runs."""
    return Trial(
        trial_id=trial_id,
        commit=f"c{trial_id}",
        parent="base",
        description="",
        researcher="tpe",
        parameters=None,
        is_simplification=False,
        at=0.0,
        runs=tuple(screen(n, 2.1) for n in run_ids),
    )


def test_calibration_comes_first_paired_or_not() -> None:
    """Six scored runs of the baseline; one that crashed is made again."""
    runs = [make_run(n, 2.0, Purpose.CALIBRATE, commit="base") for n in range(1, 6)]
    runs.append(make_run(6, None, Purpose.CALIBRATE, commit="base", outcome=Outcome.CRASH))
    history = History(baseline="base", champion="base", runs=tuple(runs))
    for is_paired in (True, False):
        need = next_champion_run_due(RULES, history, 70.0, is_paired)
        assert need is not None
        assert need.purpose is Purpose.CALIBRATE
        assert need.why == "calibration run 6 of 6 of the baseline"
    runs.append(make_run(7, 2.0, Purpose.CALIBRATE, commit="base"))
    history = dataclasses.replace(history, runs=tuple(runs))
    for is_paired in (True, False):
        assert next_champion_run_due(RULES, history, 80.0, is_paired) is None


def test_new_champion_gets_fresh_runs_unless_paired() -> None:
    """Three after a keep; in pairs candidates ask for those that they need."""
    runs: list[Measurement] = [screen(10, 1.9, commit="new"), replicate(11, 1.9, commit="new")]
    for num in range(3):
        history = History(baseline="base", champion="new", runs=tuple(runs))
        need = next_champion_run_due(RULES, history, 120.0)
        assert need is not None
        assert need.why == f"fresh run {num + 1} of 3 of the new champion"
        assert next_champion_run_due(RULES, history, 120.0, is_paired=True) is None
        greedy = dataclasses.replace(RULES, policy="greedy")
        assert next_champion_run_due(greedy, history, 120.0) is None
        runs.append(make_run(12 + num, 1.95, commit="new"))
    history = History(baseline="base", champion="new", runs=tuple(runs))
    assert next_champion_run_due(RULES, history, 150.0) is None


def test_champion_is_run_again_every_ten_trials_or_hour() -> None:
    """So that a drift of the machine is seen."""
    runs = tuple(make_run(n, 2.0, Purpose.CALIBRATE, commit="base") for n in range(1, 7))
    trials = tuple(make_trial(n, 6 + n) for n in range(1, 11))
    history = History(baseline="base", champion="base", runs=runs, trials=trials)
    nine = dataclasses.replace(history, trials=trials[:9])
    assert next_champion_run_due(RULES, nine, 100.0) is None
    need = next_champion_run_due(RULES, history, 100.0)
    assert need is not None
    assert need.why == "10 trials since the champion's last run"
    late = next_champion_run_due(RULES, nine, 60.0 + 3600)
    assert late is not None
    assert late.why == "60 minutes since the champion's last run"


def test_champion_that_fails_three_times_is_trouble() -> None:
    """Three runs in a row without a score, disturbed ones apart: somebody must look."""
    bad = [make_run(n, None, outcome=Outcome.CRASH, reason="no GPU") for n in (1, 2, 4)]
    sleepy = make_run(3, None, outcome=Outcome.DISTURBED)
    history = History(champion="champion", runs=(*bad[:2], sleepy))
    assert champion_trouble(history) == ""
    history = dataclasses.replace(history, runs=(*bad[:2], sleepy, bad[2]))
    assert "no GPU" in champion_trouble(history)
    history = dataclasses.replace(history, runs=(*bad, make_run(5, 2.0)))
    assert champion_trouble(history) == ""


# ---- properties --------------------------------------------------------------------------------

_RANK = {Verdict.DISCARD: 0, Verdict.NEAR_MISS: 2, Verdict.KEEP: 3}


def rank(answer: Need | Decision) -> int:
    """How far a candidate got; asking for the second run is between discard and near miss."""
    return 1 if isinstance(answer, Need) else _RANK[answer.verdict]


@given(ours=st.lists(SCORES, min_size=1, max_size=8), theirs=st.lists(SCORES, min_size=1))
@settings(max_examples=60, deadline=None)
def test_the_gain_is_antisymmetric(ours: list[float], theirs: list[float]) -> None:
    """Swapping the arms changes the sign of the estimate and nothing else."""
    assert estimate_gain(ours, theirs) == -estimate_gain(theirs, ours)


@given(scores=st.lists(st.tuples(st.booleans(), SCORES), min_size=2, max_size=12))
@settings(max_examples=60, deadline=None)
def test_the_paired_gain_is_antisymmetric(scores: list[tuple[bool, float]]) -> None:
    """In whatever order the arms' runs came, swapped arms give the same pairs, turned round."""
    runs = [make_run(n, score) for n, (_, score) in enumerate(scores)]
    ours = [run for run, (is_ours, _) in zip(runs, scores, strict=True) if is_ours]
    theirs = [run for run, (is_ours, _) in zip(runs, scores, strict=True) if not is_ours]
    pairs = [(a.val_bpb, b.val_bpb) for a, b in find_pairs(ours, theirs, 15.0)]
    swapped = [(b.val_bpb, a.val_bpb) for a, b in find_pairs(theirs, ours, 15.0)]
    assert pairs == swapped


@pytest.mark.parametrize("policy", ["greedy", "screen", "confirm-all"])
@pytest.mark.parametrize("is_paired", [True, False])
@given(
    champion=st.lists(SCORES, min_size=1, max_size=6),
    first=SCORES,
    second=st.none() | SCORES,
    shrink=st.floats(0.01, 1),
    in_first=st.booleans(),
)
@settings(max_examples=30, deadline=None)  # six times
def test_a_lower_score_never_does_worse(
    policy: str,
    is_paired: bool,
    champion: list[float],
    first: float,
    second: float | None,
    shrink: float,
    in_first: bool,
) -> None:
    """Lower one of the candidate's scores: the decision is as good or better."""
    rules = dataclasses.replace(RULES, policy=policy, implausible_gain_frac=1e9, floor_bpb=0)
    arm = [make_run(n, score) for n, score in enumerate(champion, start=1)]
    arm.append(make_run(22, champion[0]))

    def judge(one: float, two: float | None) -> int:
        runs = [screen(20, one)] + ([replicate(21, two)] if two is not None else [])
        answer = next_step(rules, NOISE, arm, runs, is_paired=is_paired, now=230.0)
        return rank(answer)

    lower = (first * shrink, second)
    if not in_first and second is not None:
        lower = (first, second * shrink)
    assert judge(*lower) >= judge(first, second)


@given(
    champion=st.lists(SCORES, min_size=1, max_size=5),
    candidate=st.lists(SCORES, min_size=1, max_size=2),
    order=st.randoms(use_true_random=False),
    policy=st.sampled_from(["greedy", "screen"]),
    is_paired=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_order_of_runs_within_an_arm_changes_nothing(
    champion: list[float],
    candidate: list[float],
    order: random.Random,
    policy: str,
    is_paired: bool,
) -> None:
    """Fresh runs of an arm may come in any order in the list; unpaired, at any time too."""
    rules = dataclasses.replace(RULES, policy=policy)
    arm = [make_run(n, score) for n, score in enumerate(champion, start=1)]
    purposes = itertools.chain([Purpose.SCREEN], itertools.repeat(Purpose.REPLICATE))
    runs = [
        make_run(9 + n, s, p) for n, (s, p) in enumerate(zip(candidate, purposes, strict=False))
    ]
    expected = next_step(rules, NOISE, arm, runs, is_paired=is_paired)
    order.shuffle(arm)
    order.shuffle(runs)
    assert next_step(rules, NOISE, arm, runs, is_paired=is_paired) == expected
    if not is_paired:
        times = list(range(1, len(arm) + 1))
        order.shuffle(times)
        moved = [
            dataclasses.replace(run, run_id=n, at=float(n))
            for run, n in zip(arm, times, strict=True)
        ]
        again = next_step(rules, NOISE, moved, runs)
        assert type(again) is type(expected)
        assert rank(again) == rank(expected)


@given(
    scores=st.lists(st.sampled_from([math.nan, math.inf, -math.inf, 1.0, 1.9, 2.1]), max_size=4),
    champion=st.lists(st.sampled_from([math.nan, math.inf, 2.0]), max_size=4),
    policy=st.sampled_from(["greedy", "screen", "confirm-all"]),
    is_simplification=st.booleans(),
    is_paired=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_no_mixture_with_a_nan_is_ever_kept(
    scores: list[float],
    champion: list[float],
    policy: str,
    is_simplification: bool,
    is_paired: bool,
) -> None:
    """Whatever else is there, a candidate with a score that is no number is not kept."""
    rules = dataclasses.replace(RULES, policy=policy)
    arm = [make_run(n, score) for n, score in enumerate(champion)]
    purposes = [Purpose.SCREEN, *[Purpose.REPLICATE] * 3]
    runs = [make_run(9 + n, s, p) for n, (s, p) in enumerate(zip(scores, purposes, strict=False))]
    answer = next_step(
        rules, NOISE, arm, runs, is_simplification=is_simplification, is_paired=is_paired
    )
    if isinstance(answer, Decision) and answer.verdict is Verdict.KEEP:
        assert all(math.isfinite(score) for score in scores)
        assert 2.0 in champion


THREE = st.lists(SCORES, min_size=3, max_size=3)


@given(scores=st.lists(st.tuples(st.booleans(), SCORES), min_size=2, max_size=12))
@settings(max_examples=60, deadline=None)
def test_the_estimate_over_pairs_is_antisymmetric(scores: list[tuple[bool, float]]) -> None:
    """The mean over pairs with the arms' names exchanged is the same figure, negative."""
    runs = [make_run(n, score) for n, (_, score) in enumerate(scores)]
    arms: dict[bool, list[Measurement]] = {True: [], False: []}
    for run, (is_ours, _) in zip(runs, scores, strict=True):
        arms[is_ours].append(run)

    def estimate(ours: list[Measurement], theirs: list[Measurement]) -> float:
        pairs = find_pairs(ours, theirs, 15.0)
        values = [(a.val_bpb or 0.0, b.val_bpb or 0.0) for a, b in pairs]
        return estimate_gain([a for a, _ in values], [b for _, b in values]) if values else 0.0

    assert estimate(arms[True], arms[False]) == -estimate(arms[False], arms[True])


@given(champion=THREE, candidate=THREE, which=st.integers(0, 2), shrink=st.floats(0.01, 1))
@pytest.mark.parametrize("is_paired", [True, False])
@settings(max_examples=60, deadline=None)
def test_a_simplification_that_scores_lower_never_does_worse(
    is_paired: bool, champion: list[float], candidate: list[float], which: int, shrink: float
) -> None:
    """Of the runs of a simplification any may be lowered. Not so where results are too good to be
    believed: those must agree among themselves, so one lower run alone can cost the verdict.
    """
    rules = dataclasses.replace(RULES, implausible_gain_frac=1e9)
    arm = [make_run(2 * n, score) for n, score in enumerate(champion)]

    def judge(scores: list[float]) -> int:
        runs = [replicate(2 * n + 1, score) for n, score in enumerate(scores)]
        return rank(next_step(rules, NOISE, arm, runs, is_paired=is_paired, is_simplification=True))

    lower = [s * shrink if n == which else s for n, s in enumerate(candidate)]
    assert judge(lower) >= judge(candidate)


@given(champion=THREE, candidate=THREE, order=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_fresh_runs_of_a_candidate_may_come_in_any_order(
    champion: list[float], candidate: list[float], order: random.Random
) -> None:
    """Unpaired, the three runs of a simplification are exchangeable. A first and a second run are
    not: the first lets the second be made, whatever the second would have said.
    """
    arm = [make_run(n, score) for n, score in enumerate(champion)]

    def judge(scores: list[float]) -> Need | Decision:
        runs = [replicate(9 + n, score) for n, score in enumerate(scores)]
        return next_step(RULES, NOISE, arm, runs, is_simplification=True)

    assert judge(order.sample(candidate, 3)) == judge(candidate)


@given(
    champion=st.lists(SCORES, min_size=4, max_size=8),
    others=st.lists(SCORES, min_size=8, max_size=8),
    first=SCORES,
    second=SCORES,
)
@settings(max_examples=60, deadline=None)
def test_in_pairs_only_neighbours_count(
    champion: list[float], others: list[float], first: float, second: float
) -> None:
    """Paired, time is part of the measurement, so runs of an arm are not exchangeable. What holds:
    a champion run that is no neighbour of a candidate run may have any score.
    """
    runs = [screen(20, first), replicate(22, second)]
    beside = [make_run(n, score) for n, score in zip((19, 21, 23), champion, strict=False)]

    def judge(far: list[float]) -> Need | Decision:
        early = [make_run(n, score) for n, score in enumerate(far, start=1)]
        return next_step(RULES, PAIRED, [*early, *beside], runs, is_paired=True, now=240.0)

    assert judge(others[: len(champion)]) == judge(champion)
