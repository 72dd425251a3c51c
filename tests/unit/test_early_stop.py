"""Early stop: whose curves count, the limit, marks, what a lie wins, the false kills."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoresearch.search.early_stop import (
    EarlyStop,
    Limits,
    count_false_kills,
    find_mark,
    good_runs,
    interval,
    is_switched_off,
    judge_stopped,
    loss_at,
    make_limits,
    percentile,
    replay,
    stops_too_much,
    watched_seconds,
)
from autoresearch.search.history import Event, History, SessionStart
from autoresearch.values.config import JudgeSettings
from autoresearch.values.records import (
    Decision,
    Measurement,
    Outcome,
    Purpose,
    Trial,
    Verdict,
    measurement_from_json,
    to_json,
)

BASELINE, BUDGET_S = "b" * 40, 40.0
SETTINGS = JudgeSettings(early_stop_curves=6)
few = settings(max_examples=60, deadline=None)


def curve(level: float, *, step_s: float = 1.0) -> tuple[tuple[float, float], ...]:
    """A loss that falls from `level` + 4 to `level` over the budget."""
    count = int(BUDGET_S / step_s) + 1
    return tuple((i * step_s, level + 4 * (1 - i * step_s / BUDGET_S) ** 2) for i in range(count))


def run(run_id: int, commit: str, level: float, **more: Any) -> Measurement:
    """A finished run whose curve ends at `level`, with half of that as its score."""
    values: dict[str, Any] = {
        "purpose": Purpose.CALIBRATE,
        "seed": run_id,
        "outcome": Outcome.SCORED,
        "val_bpb": level / 2,
        "curve": curve(level),
    }
    return Measurement(run_id=run_id, commit=commit, **{**values, **more})


def trial(number: int, runs: list[Measurement], verdict: Verdict, **more: Any) -> Trial:
    """A closed trial with these runs."""
    values: dict[str, Any] = {
        "parent": BASELINE,
        "description": "x",
        "researcher": "tpe",
        "parameters": {"A": number},
        "is_simplification": False,
        "at": 100.0 + number,
        "decision": Decision(verdict=verdict, reason="because"),
    }
    commit = runs[0].commit if runs else f"{number:040x}"
    return Trial(trial_id=number, commit=commit, runs=tuple(runs), **{**values, **more})


def calibrated(
    *trials: Trial, levels: tuple[float, ...] = (4.0, 4.02, 3.98, 4.01, 3.99, 4.0)
) -> Any:
    """A history with six runs of the baseline, four finished runs of others, and some trials."""
    runs = [run(i + 1, BASELINE, level) for i, level in enumerate(levels)]
    runs += [run(9000 + i, f"{i}" * 40, 4.3, purpose=Purpose.SCREEN) for i in range(4)]
    runs += [r for t in trials for r in t.runs]
    start = SessionStart(seq=1, at=50.0, config={}, host={})
    return History(baseline=BASELINE, trials=trials, runs=tuple(runs), sessions=(start,))


def tried(number: int, level: float, verdict: Verdict, **more: Any) -> Trial:
    """A trial with a screening run, and a second one where it was kept or nearly."""
    purposes = [Purpose.SCREEN]
    if verdict in (Verdict.KEEP, Verdict.NEAR_MISS):
        purposes.append(Purpose.REPLICATE)
    runs = [
        run(100 * number + i, f"{number:040x}", level, purpose=p) for i, p in enumerate(purposes)
    ]
    return trial(number, [dataclasses.replace(r, **more) for r in runs], verdict)


@few
@given(st.floats(-5, 45), st.lists(st.floats(0.1, 9), min_size=1, max_size=9))
def test_a_loss_between_points_is_between_theirs(second: float, losses: list[float]) -> None:
    """Inside the curve it lies between the lowest and highest loss; outside nothing is said."""
    points = [(5.0 * i, loss) for i, loss in enumerate(losses)]
    loss = loss_at(points, second)
    if 0 <= second <= points[-1][0]:
        assert loss is not None
        assert min(losses) - 1e-9 <= loss <= max(losses) + 1e-9
    else:
        assert loss is None


@few
@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0.01, 1)), min_size=1), st.floats(0.01, 1))
def test_a_weighted_percentile(weighted: list[tuple[float, float]], frac: float) -> None:
    """At least that share of the weight lies at or under it, and less under any smaller value."""
    value = percentile(weighted, frac)
    total = sum(w for _, w in weighted)
    assert sum(w for x, w in weighted if x <= value) >= frac * total * (1 - 1e-9)
    assert sum(w for x, w in weighted if x < value) < frac * total * (1 + 1e-9)


def test_only_commits_that_earned_a_second_run_count() -> None:
    """Baseline, kept and replicated; not what was discarded, crashed or merely simpler."""
    simpler = dataclasses.replace(tried(4, 4.0, Verdict.NEAR_MISS), is_simplification=True)
    history = calibrated(
        tried(1, 3.9, Verdict.KEEP),
        tried(2, 4.5, Verdict.DISCARD),
        tried(3, 3.95, Verdict.NEAR_MISS),
        simpler,
    )
    commits = {r.commit for r in good_runs(history)}
    assert commits == {BASELINE, f"{1:040x}", f"{3:040x}"}


def test_what_the_champion_left_behind_is_no_example() -> None:
    """A champion better by far pulls the limit down; commits that it does not clearly beat stay."""
    far, near = tried(1, 3.0, Verdict.KEEP), tried(2, 3.02, Verdict.NEAR_MISS)
    more = [run(500 + i, far.commit, 3.0 + 0.01 * i) for i in range(6)]
    history = calibrated(far, near)
    history = dataclasses.replace(history, runs=(*history.runs, *more))
    before = make_limits(history, BUDGET_S, 6)
    history = dataclasses.replace(history, champion=far.commit)
    after = make_limits(history, BUDGET_S, 6)
    assert {r.commit for r in good_runs(history)} == {far.commit, near.commit}
    assert before is not None
    assert after is not None
    assert before.at(20.0) > 5.0 > after.at(20.0)


def test_nothing_is_stopped_before_enough_curves_exist() -> None:
    """Too few runs, too few commits, or no two good curves of one commit: no limit."""
    history = calibrated()
    assert make_limits(history, BUDGET_S, len(history.runs)) is not None
    assert make_limits(history, BUDGET_S, len(history.runs) + 1) is None
    few_commits = dataclasses.replace(history, runs=history.runs[:-1])
    assert make_limits(few_commits, BUDGET_S, 6) is None
    kept = [tried(i, 4.0, Verdict.KEEP) for i in range(1, 6)]
    once = [dataclasses.replace(trial, runs=trial.runs[:1]) for trial in kept]
    history = calibrated(*once, levels=(4.0,))
    limits = make_limits(history, BUDGET_S, 6)
    assert limits is not None
    assert set(limits.losses) == {None}


def test_the_limit_is_the_percentile_and_the_margin() -> None:
    """Six runs of one commit: their highest, and twice their deviation."""
    limits = make_limits(calibrated(), BUDGET_S, 6)
    assert limits is not None
    sigma = math.sqrt(sum(x * x for x in (0.02, 0.02, 0.01, 0.01)) / 5)
    assert limits.at(20.0) == pytest.approx(4.02 + 1 + 2 * sigma)
    assert limits.at(9.0) is None
    assert limits.at(33.0) is None
    assert (limits.num_curves, limits.num_commits) == (6, 1)


def test_where_curves_cross_the_margin_is_wider() -> None:
    """What one finished curve in ten falls more than the good ones is no reason to end a run."""
    late = tuple((s, 4.3 + 5 * (1 - s / BUDGET_S) ** 2) for s, _ in curve(4.3))
    history = calibrated()
    runs = [r if r.commit == BASELINE else dataclasses.replace(r, curve=late) for r in history.runs]
    limits = make_limits(dataclasses.replace(history, runs=tuple(runs)), BUDGET_S, 6)
    assert limits is not None
    assert limits.at(20.0) == pytest.approx(4.02 + 1 + 0.25)


def test_hopeless_is_marked_and_good_is_not() -> None:
    """A curve far above is marked at the second moment looked at, one like the others never."""
    limits = make_limits(calibrated(), BUDGET_S, 6)
    assert limits is not None
    assert find_mark(curve(4.5), limits) == watched_seconds(BUDGET_S)[1]
    assert find_mark(curve(4.01), limits) is None
    assert find_mark((), limits) is None


@cache
def known_limits(*levels: float) -> Limits:
    """Those of the calibrated history, with kept trials at these levels."""
    kept = [tried(number, level, Verdict.KEEP) for number, level in enumerate(levels, 1)]
    limits = make_limits(calibrated(*kept), BUDGET_S, 6)
    assert limits is not None
    return limits


@few
@given(st.floats(-1, 1), st.floats(0, 1))
def test_a_mark_is_monotone_in_the_loss(level: float, worse: float) -> None:
    """What is marked stays marked, no later, when its loss is higher everywhere."""
    limits = known_limits()
    better, later = find_mark(curve(4 + level), limits), find_mark(curve(4 + level + worse), limits)
    if better is not None:
        assert later is not None
        assert later <= better


@few
@given(st.permutations(range(10)))
def test_the_order_of_runs_does_not_matter(order: list[int]) -> None:
    """The same curves give the same limit."""
    history = calibrated()
    runs = tuple(history.runs[i] for i in order)
    again = make_limits(dataclasses.replace(history, runs=runs), BUDGET_S, 6)
    assert again is not None
    assert again.losses == pytest.approx(known_limits().losses)


@few
@given(st.floats(0.1, 12.0), st.integers(1, 200))
def test_a_lie_about_the_end_is_worth_nothing(told: float, times: int) -> None:
    """A kept commit whose curve ends elsewhere than its score says is not held against others."""
    lies = [
        run(1000 + i, f"{2:040x}", 3.9, purpose=Purpose.CHAMPION, curve=curve(told))
        for i in range(times % 7)
    ]
    liar = dataclasses.replace(tried(2, 3.9, Verdict.KEEP, curve=curve(told)))
    history = calibrated(tried(1, 3.9, Verdict.KEEP), liar)
    history = dataclasses.replace(history, runs=(*history.runs, *lies))
    limits = make_limits(history, BUDGET_S, 6)
    assert limits is not None
    if abs(told / 3.9 - 1) > 0.11:
        assert limits.losses == known_limits(3.9).losses


@pytest.mark.parametrize("times", [1, 2, 3, 7, 20, 60])
def test_one_liar_is_one_vote_however_often_it_runs(times: int) -> None:
    """A champion that reports a low loss until its end does not get its honest parent stopped."""
    low = ((0.0, 3.9), (10.0, 3.9), (30.0, 3.9), (40.0, 3.9))
    liar = tried(1, 3.9, Verdict.KEEP, curve=low)
    lies = [
        run(1000 + i, liar.commit, 3.9, purpose=Purpose.CHAMPION, curve=low) for i in range(times)
    ]
    history = calibrated(liar)
    history = dataclasses.replace(history, runs=(*history.runs, *lies))
    limits = make_limits(history, BUDGET_S, 6)
    assert limits is not None
    assert limits.num_commits == 2
    for level in (3.98, 4.0, 4.02):
        assert find_mark(curve(level), limits) is None


def watch(is_spared: bool = False, **more: Any) -> EarlyStop:
    """A watch that has begun on a screening run over six curves of the baseline."""
    values = dataclasses.replace(SETTINGS, **more)
    early = EarlyStop(values, BUDGET_S, lambda: is_spared)
    early.begin(calibrated(), Purpose.SCREEN)
    return early


def test_a_hopeless_run_is_told_to_end_and_why() -> None:
    """At the second report in a row above the limit, with the figures; not before 25 %."""
    early = watch()
    assert early.look(5.0, {"loss": 99.0}) == ""
    assert early.look(11.0, {"loss": 9.0}) == ""
    assert early.look(11.5, {"loss": 4.0}) == ""
    assert early.look(12.0, {"loss": 9.0}) == ""
    reason = early.look(12.5, {"loss": 9.0})
    assert reason.startswith("stopped early at 12.5 s: reported loss 9, more than 5.9")
    assert "6 curves of 1 commit" in reason
    mark = early.sign(run(1, "c", 4.0)).early_stop
    assert (mark["second"], mark["loss"], mark["is_spared"]) == (12.5, 9.0, False)


def test_a_spared_run_goes_on_with_its_mark() -> None:
    """Nothing ends it any more; its record says where it would have ended."""
    early = watch(is_spared=True)
    assert [early.look(s, {"loss": 9.0}) for s in (12.0, 12.5, 13.0, 20.0)] == [""] * 4
    mark = early.sign(run(1, "c", 4.0)).early_stop
    assert (mark["second"], mark["is_spared"]) == (12.5, True)


@pytest.mark.parametrize("said", [{}, {"loss": "nan"}, {"loss": True}, {"loss": 3.0}, {"step": 1}])
def test_what_says_nothing_or_little_runs_to_its_end(said: dict[str, Any]) -> None:
    """No loss, a text, a low one: never stopped, and no mark."""
    early = watch()
    assert [early.look(float(s), said) for s in range(40)] == [""] * 40
    assert early.sign(run(1, "c", 4.0)).early_stop == {}


@pytest.mark.parametrize("purpose", [p for p in Purpose if p is not Purpose.SCREEN])
def test_only_first_runs_of_candidates_are_stopped(purpose: Purpose) -> None:
    """Never the champion, never a second run."""
    early = watch()
    early.begin(calibrated(), purpose)
    assert [early.look(s, {"loss": 9.0}) for s in (12.0, 12.5, 13.0)] == [""] * 3


def test_one_line_turns_it_off() -> None:
    """early_stop = "off"."""
    early = watch(early_stop="off")
    assert [early.look(s, {"loss": 9.0}) for s in (12.0, 12.5, 13.0)] == [""] * 3


def stopped(number: int) -> Trial:
    """A trial that early stop ended."""
    commit, mark = f"{number:040x}", {"second": 12.0, "loss": 9.0, "limit": 6.0, "is_spared": False}
    ended = run(
        100 * number,
        commit,
        4.0,
        purpose=Purpose.SCREEN,
        outcome=Outcome.STOPPED,
        val_bpb=None,
        reason="stopped early at 12.0 s",
        early_stop=mark,
    )
    return trial(number, [ended], Verdict.DISCARD)


def test_the_verdict_on_a_stopped_trial() -> None:
    """A discard with the run's reason and without a score."""
    decision = judge_stopped(stopped(1).runs)
    assert decision == Decision(verdict=Verdict.DISCARD, reason="stopped early at 12.0 s")
    assert judge_stopped(tried(1, 4.0, Verdict.KEEP).runs) is None
    assert judge_stopped(()) is None


def test_eight_in_ten_switch_it_off_until_the_next_session() -> None:
    """Seven do not; what was noted in this session holds, what an earlier one noted does not."""
    trials = [*(stopped(i) for i in range(1, 9)), *(tried(i, 4, Verdict.DISCARD) for i in (9, 10))]
    history = calibrated(*trials)
    assert "8 of the last 10 trials" in stops_too_much(history)
    assert stops_too_much(calibrated(*trials[1:])) == ""
    noted = dataclasses.replace(
        history, notes=(Event(seq=9, at=120.0, kind="note.early_stop", body={}),)
    )
    assert is_switched_off(noted)
    assert stops_too_much(noted) == ""
    again = SessionStart(seq=10, at=200.0, config={}, host={})
    later = dataclasses.replace(noted, sessions=(*noted.sessions, again))
    assert not is_switched_off(later)
    assert stops_too_much(later) == ""


def test_false_kills_are_counted_from_the_spared() -> None:
    """One of two spared runs earned a second run; the stopped one proves nothing."""
    mark = {"second": 12.0, "loss": 9.0, "limit": 6.0, "is_spared": True}
    history = calibrated(
        stopped(1),
        tried(2, 4.5, Verdict.DISCARD, early_stop=mark),
        tried(3, 3.9, Verdict.KEEP),
        trial(
            4,
            [
                run(400, "d" * 40, 3.9, purpose=Purpose.SCREEN, early_stop=mark),
                run(401, "d" * 40, 4.0, purpose=Purpose.REPLICATE),
            ],
            Verdict.DISCARD,
        ),
    )
    kills = count_false_kills(history)
    assert (kills.num_stopped, kills.num_spared, kills.num_wrong) == (1, 2, 1)
    assert 0 < kills.low < 0.5 < kills.high < 1


def test_the_interval_is_exact() -> None:
    """Nothing known is 0 to 1; none of ten is 0 to 31 %."""
    assert interval(0, 0) == (0.0, 1.0)
    assert interval(0, 10) == pytest.approx((0.0, 1 - 0.025 ** (1 / 10)))


def test_good_curves_are_not_marked_by_the_others() -> None:
    """The replay holds each against the rest; an outlier among them is one mark."""
    assert replay(calibrated(), BUDGET_S, 20) == (0, 0)
    levels = (4.0, 4.02, 3.98, 4.01, 3.99, 4.0, 4.01)
    assert replay(calibrated(levels=levels), BUDGET_S, 6) == (7, 0)
    odd = calibrated(levels=(*levels, 4.5))
    odd = dataclasses.replace(
        odd, runs=tuple(dataclasses.replace(r, val_bpb=r.curve[-1][1] / 2) for r in odd.runs)
    )
    assert replay(odd, BUDGET_S, 6) == (8, 1)


def test_curve_and_mark_survive_the_ledger() -> None:
    """A measurement comes back from JSON as it went; one from before curves has none."""
    import json

    before = run(1, "c", 4.0, early_stop={"second": 1.0, "is_spared": True})
    body = json.loads(json.dumps(to_json(before)))
    assert measurement_from_json(body) == before
    del body["curve"], body["early_stop"]
    assert measurement_from_json(body).curve == ()
