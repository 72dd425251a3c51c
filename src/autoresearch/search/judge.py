"""Runs become verdicts here. Pure functions: the session asks `next_step` and does what it says.

Policies: `greedy` keeps whatever scores lower once. `screen` asks for a gain of one sigma in a
first run and again in a second; `confirm-all` is `screen` with a note that wants a confirmation.
A simplification, declared beforehand, needs three runs that together are not worse by half a sigma.

Unpaired: a candidate is compared with the mean of all fresh runs of the champion.
Paired (the machine's speed drifts): a *pair* is a candidate run and a champion run that are
neighbours in the order of both arms' runs and started at most `max_gap_s` apart; the gain is the
mean over pairs. A champion run serves the trials on both its sides. The replicate never uses a
champion run that the screen used: a weak one would let a candidate through twice.

noise.py measures sigma. Nothing that was selected on enters a mean or the noise. With fewer than
five degrees of freedom no reason uses a statistical word.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from autoresearch.search.history import FRESH, History
from autoresearch.search.noise import Noise, agrees, default_gap_s, has_score, score_of
from autoresearch.values.config import JudgeSettings
from autoresearch.values.records import Decision, Measurement, Outcome, Purpose, Verdict

_MIN_FREEDOM = 5  # degrees of freedom from which a sigma may be spoken of
_SIMPLIFICATION_RUNS = 3
_RETRIES = 2  # candidate runs without a champion run near them before the nearest one must do
_BAD_CHAMPION_RUNS = 3
_FAILURES = {  # the gravest first
    Outcome.CHEAT: Verdict.CHEAT,
    Outcome.TIMEOUT: Verdict.TIMEOUT,
    Outcome.CRASH: Verdict.CRASH,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """The run that is wanted next; `wants_audit` asks for the full audit whatever it scores."""

    who: Literal["candidate", "champion"]
    purpose: Purpose
    why: str
    wants_audit: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Comparison:
    """Some candidate runs against the champion; `used` are the champion's run ids."""

    gain: float
    candidate: float
    champion: float
    used: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """All that a policy looks at."""

    settings: JudgeSettings
    noise: Noise
    champion: tuple[Measurement, ...]  # scored, in run order; only fresh ones, but for greedy
    candidate: tuple[Measurement, ...]
    is_paired: bool
    now: float | None
    max_gap_s: float


def next_step(
    settings: JudgeSettings,
    noise: Noise,
    champion_runs: Sequence[Measurement],
    candidate_runs: Sequence[Measurement],
    *,
    is_simplification: bool = False,
    is_paired: bool = False,
    now: float | None = None,
    max_gap_s: float | None = None,
    simplification_cost_bpb: float = 0.0,
) -> Need | Decision:
    """The run that the trial in hand needs next, or its verdict.

    Args:
        settings: the policy and its limits.
        noise: from `measure_noise`, with the same `is_paired`.
        champion_runs: all runs of the champion's commit; what does not count is left out here.
        candidate_runs: all runs of the trial's commit. Disturbed and interrupted ones are ignored.
        is_simplification: declared by the proposal.
        is_paired: compare with champion runs next in time, see `should_pair`.
        now: Unix time; None where a candidate's last run is known to be recent.
        max_gap_s: between two starts that count as next to each other; default `default_gap_s`.
        simplification_cost_bpb: what kept simplifications have cost so far, `simplification_cost`.
    """
    failure = _judge_failure(candidate_runs)
    if failure:
        return failure
    is_greedy = settings.policy == "greedy"
    champion = [r for r in champion_runs if has_score(r) and (is_greedy or r.purpose in FRESH)]
    wanted = (Purpose.SCREEN, Purpose.REPLICATE)
    candidate = [r for r in candidate_runs if has_score(r) and r.purpose in wanted]
    if max_gap_s is None:
        max_gap_s = default_gap_s([*champion, *candidate])
    case = _Case(
        settings=settings,
        noise=noise,
        champion=tuple(sorted(champion, key=lambda run: run.run_id)),
        candidate=tuple(sorted(candidate, key=lambda run: run.run_id)),
        is_paired=is_paired,
        now=now,
        max_gap_s=max_gap_s,
    )
    if is_greedy:
        return _judge_greedy(case, is_simplification)
    if noise.degrees_of_freedom < 1:
        return Need(who="champion", purpose=Purpose.CHAMPION, why="the noise is not known yet")
    if is_simplification:
        return _judge_simplification(case, simplification_cost_bpb)
    return _judge_screen(case)


def next_champion_run_due(
    settings: JudgeSettings, history: History, now: float, is_paired: bool = False
) -> Need | None:
    """A run of the champion that is due between trials: calibration, fresh runs, every so often.

    In paired mode only calibration is: candidates ask for the champion runs that they need.
    """
    fresh = [run for run in history.runs_of(history.champion) if has_score(run)]
    num_calibrated = sum(run.purpose is Purpose.CALIBRATE for run in fresh)
    if history.champion == history.baseline and num_calibrated < settings.calibration_runs:
        why = f"calibration run {num_calibrated + 1} of {settings.calibration_runs}"
        return Need(who="champion", purpose=Purpose.CALIBRATE, why=f"{why} of the baseline")
    if is_paired or settings.policy == "greedy":
        return None
    why = ""
    if len(fresh) < settings.champion_runs:
        why = f"fresh run {len(fresh) + 1} of {settings.champion_runs} of the new champion"
    else:
        last = max(fresh, key=lambda run: run.run_id)
        num_since = sum(any(r.run_id > last.run_id for r in t.runs) for t in history.trials)
        if num_since >= settings.champion_every_trials:
            why = f"{num_since} trials since the champion's last run"
        elif now - last.at >= settings.champion_every_s:
            why = f"{(now - last.at) / 60:.0f} minutes since the champion's last run"
    return Need(who="champion", purpose=Purpose.CHAMPION, why=why) if why else None


def estimate_gain(champion_scores: Sequence[float], candidate_scores: Sequence[float]) -> float:
    """How much lower the candidate scores on average; swapping the arms changes the sign."""
    return statistics.fmean(champion_scores) - statistics.fmean(candidate_scores)


def find_pairs(
    champion_runs: Sequence[Measurement], candidate_runs: Sequence[Measurement], max_gap_s: float
) -> list[tuple[Measurement, Measurement]]:
    """Champion and candidate runs that are neighbours in run order and started close in time."""
    ids = {run.run_id for run in champion_runs}
    order = sorted([*champion_runs, *candidate_runs], key=lambda run: run.run_id)
    pairs = []
    for first, second in pairwise(order):
        if (first.run_id in ids) == (second.run_id in ids):
            continue
        if abs(second.at - first.at) <= max_gap_s:
            pairs.append((first, second) if first.run_id in ids else (second, first))
    return pairs


def is_implausible(settings: JudgeSettings, candidate_bpb: float, champion_bpb: float) -> str:
    """Why a score is too good to be believed at once, or ""; such a run is repeated, audited."""
    if candidate_bpb < settings.floor_bpb:
        return f"val_bpb {candidate_bpb:.4f} is under the floor of {settings.floor_bpb:g}"
    gain_frac = (champion_bpb - candidate_bpb) / champion_bpb
    if gain_frac > settings.implausible_gain_frac:
        return (
            f"a gain of {gain_frac:.1%} over the champion's {champion_bpb:.4f} "
            f"is more than the {settings.implausible_gain_frac:.0%} that is believed at once"
        )
    return ""


def simplification_cost(history: History, after_trial_id: int = 0) -> float:
    """What the simplifications kept after a trial (the last confirmed champion's) cost together."""
    return sum(
        max(0.0, -(trial.decision.gain_bpb or 0.0))
        for trial in history.trials
        if trial.is_simplification
        and trial.trial_id > after_trial_id
        and trial.decision is not None
        and trial.decision.verdict is Verdict.KEEP
    )


def champion_trouble(history: History) -> str:
    """Why the champion cannot be run any more, or "": its last three fresh runs gave no score."""
    ignored = (Outcome.DISTURBED, Outcome.INTERRUPTED)
    runs = [r for r in history.runs_of(history.champion) if r.outcome not in ignored]
    last = runs[-_BAD_CHAMPION_RUNS:]
    if len(last) < _BAD_CHAMPION_RUNS or any(has_score(run) for run in last):
        return ""
    return f"the champion's last {len(last)} runs gave no score; the last: {last[-1].reason}"


def _judge_failure(runs: Sequence[Measurement]) -> Decision | None:
    """The gravest failure among the runs; a score that is no finite number is a crash."""
    for outcome, verdict in _FAILURES.items():
        for run in sorted(runs, key=lambda run: run.run_id):
            is_nan = outcome is Outcome.CRASH and run.outcome is Outcome.SCORED
            if is_nan and not has_score(run):
                return Decision(verdict=verdict, reason="the score is not a finite number")
            if run.outcome is outcome:
                where = " (in a repeated run)" if run.purpose is Purpose.REPLICATE else ""
                return Decision(verdict=verdict, reason=f"{run.reason or verdict.value}{where}")
    return None


def _judge_greedy(case: _Case, is_simplification: bool) -> Need | Decision:
    """One run; lower than the champion's best known score is kept, an equal one if simpler."""
    if not case.champion:
        return Need(who="champion", purpose=Purpose.CHAMPION, why="the champion has no score yet")
    if not case.candidate:
        return Need(who="candidate", purpose=Purpose.SCREEN, why="one run decides")
    best = min(score_of(run) for run in case.champion)
    first = score_of(case.candidate[0])
    too_good = is_implausible(case.settings, first, best)
    if too_good and len(case.candidate) == 1:
        return _repeat(too_good)
    score = score_of(case.candidate[-1]) if too_good else first
    if too_good and not agrees(case.noise, first, score):
        return _disagreement(too_good, first, score)
    gain = best - score
    against = f"the champion's best, {best:.4f}"
    reason = f"val_bpb {score:.4f} {_versus(case.noise, gain, against)}"
    if gain > 0 or (is_simplification and gain == 0):
        return _decide(case, Verdict.KEEP, f"{reason}; kept", score, gain)
    return _decide(case, Verdict.DISCARD, f"{reason}; discarded", score, gain)


def _judge_screen(case: _Case) -> Need | Decision:
    screens = [run for run in case.candidate if run.purpose is Purpose.SCREEN]
    replicates = [run for run in case.candidate if run.purpose is Purpose.REPLICATE]
    first = _compare(case, screens, 1, Purpose.SCREEN, frozenset())
    if isinstance(first, Need):
        return first
    sigma = case.noise.sigma_bpb
    text = f"val_bpb {first.candidate:.4f} {_versus(case.noise, first.gain, _arm(first))}"
    if not (first.gain > 0 and first.gain >= sigma):
        asked = f", less than the {sigma:.4f} asked for" if first.gain > 0 else ""
        reason = f"{text}{asked}; discarded"
        return _decide(case, Verdict.DISCARD, reason, first.candidate, first.gain)
    too_good = is_implausible(case.settings, first.candidate, first.champion)
    if not replicates:
        why = f"{text}; a second run decides"
        return _repeat(too_good) if too_good else _want("candidate", Purpose.REPLICATE, why)
    second = _compare(case, replicates, 1, Purpose.REPLICATE, first.used)
    if isinstance(second, Need):
        return second
    too_good = too_good or is_implausible(case.settings, second.candidate, second.champion)
    if too_good and not agrees(case.noise, first.candidate, second.candidate):
        return _disagreement(too_good, first.candidate, second.candidate)
    return _judge_second(case, first, second)


def _judge_second(case: _Case, first: _Comparison, second: _Comparison) -> Decision:
    sigma, gain = case.noise.sigma_bpb, second.gain
    reason = f"val_bpb {second.candidate:.4f} {_versus(case.noise, gain, _arm(second))}"
    reason += f", after a first run better by {_amount(case.noise, first.gain)}"
    if gain > 0 and gain >= sigma:
        reason += "; kept"
        if case.settings.policy == "confirm-all":
            reason += ", confirmation wanted before it is claimed"
        return _decide(case, Verdict.KEEP, reason, second.candidate, gain)
    if gain > 0:
        reason += f", but {sigma:.4f} was asked for twice; near miss"
        return _decide(case, Verdict.NEAR_MISS, reason, second.candidate, gain)
    return _decide(case, Verdict.DISCARD, f"{reason}; discarded", second.candidate, gain)


def _judge_simplification(case: _Case, spent_bpb: float) -> Need | Decision:
    """Three runs, together not worse by half a sigma, within what simplifications may cost."""
    runs = list(case.candidate)
    result = _compare(case, runs, _SIMPLIFICATION_RUNS, Purpose.REPLICATE, frozenset())
    if isinstance(result, Need):
        return result
    sigma, loss = case.noise.sigma_bpb, max(0.0, -result.gain)
    versus = _versus(case.noise, result.gain, _arm(result))
    reason = f"simpler, val_bpb {result.candidate:.4f} over {len(runs)} runs {versus}"
    verdict = Verdict.DISCARD
    if loss > sigma / 2:
        reason += f", more than the {sigma / 2:.4f} that simplicity is worth; discarded"
    elif spent_bpb + loss > sigma:
        reason += f", and simplifications may cost {sigma:.4f} together; discarded"
    elif is_implausible(case.settings, result.candidate, result.champion) and not all(
        agrees(case.noise, score_of(a), score_of(b)) for a in runs for b in runs
    ):
        reason += ", which is too good for runs that differ so much; discarded"
    else:
        verdict, reason = Verdict.KEEP, f"{reason}; kept"
    return _decide(case, verdict, reason, result.candidate, result.gain)


def _compare(
    case: _Case, runs: list[Measurement], num: int, purpose: Purpose, excluded: frozenset[int]
) -> _Comparison | Need:
    """`num` candidate runs against the champion, or the run that this still needs."""
    missing = _want("candidate", purpose, f"run {len(runs) + 1} of the candidate")
    if not case.is_paired:
        if not case.champion:
            return _want("champion", Purpose.CHAMPION, "the champion has no fresh run yet")
        return _summarise(case.champion, runs) if len(runs) >= num else missing
    ids = {run.run_id for run in runs}
    pairs = [
        (a, b)
        for a, b in find_pairs(case.champion, case.candidate, case.max_gap_s)
        if b.run_id in ids and a.run_id not in excluded
    ]
    if len({b.run_id for _, b in pairs}) < num:
        if runs and _can_pair_now(case, runs[-1], pairs):
            why = "the candidate's run needs one of the champion next to it in time"
            return _want("champion", Purpose.CHAMPION, why)
        if len(runs) < num + _RETRIES:
            return missing
        pairs = _nearest_pairs(case, runs, excluded)
        if not pairs:
            why = "there is no champion run to compare with"
            return _want("champion", Purpose.CHAMPION, why)
    return _summarise([a for a, _ in pairs], [b for _, b in pairs])


def _can_pair_now(
    case: _Case, last: Measurement, pairs: list[tuple[Measurement, Measurement]]
) -> bool:
    """True when a champion run made now would be a neighbour of the candidate's last run."""
    later = [r for r in (*case.champion, *case.candidate) if r.run_id > last.run_id]
    is_paired_already = any(b.run_id == last.run_id for _, b in pairs)
    is_recent = case.now is None or case.now - last.at <= case.max_gap_s
    return not later and not is_paired_already and is_recent


def _nearest_pairs(
    case: _Case, runs: list[Measurement], excluded: frozenset[int]
) -> list[tuple[Measurement, Measurement]]:
    """Each candidate run with the champion run nearest in order: the clock was of no help."""
    allowed = [run for run in case.champion if run.run_id not in excluded]
    if not allowed:
        return []
    return [(min(allowed, key=lambda a: abs(a.run_id - b.run_id)), b) for b in runs]


def _summarise(champion: Sequence[Measurement], candidate: Sequence[Measurement]) -> _Comparison:
    ours, theirs = [score_of(run) for run in champion], [score_of(run) for run in candidate]
    return _Comparison(
        gain=estimate_gain(ours, theirs),
        candidate=statistics.fmean(theirs),
        champion=statistics.fmean(ours),
        used=frozenset(run.run_id for run in champion),
    )


def _want(who: Literal["candidate", "champion"], purpose: Purpose, why: str) -> Need:
    return Need(who=who, purpose=purpose, why=why)


def _repeat(why: str) -> Need:
    why = f"{why}: run again"
    return Need(who="candidate", purpose=Purpose.REPLICATE, why=why, wants_audit=True)


def _decide(case: _Case, verdict: Verdict, reason: str, bpb: float, gain: float) -> Decision:
    sigma = case.noise.sigma_bpb if case.noise.degrees_of_freedom else None
    return Decision(verdict=verdict, reason=reason, val_bpb=bpb, gain_bpb=gain, sigma_bpb=sigma)


def _disagreement(why: str, first: float, second: float) -> Decision:
    reason = f"{why}, and a second run gave {second:.4f} instead of {first:.4f}; discarded"
    return Decision(verdict=Verdict.DISCARD, reason=reason)


def _arm(comparison: _Comparison) -> str:
    num = len(comparison.used)
    return f"the champion's {comparison.champion:.4f} ({num} run{'s' if num > 1 else ''})"


def _amount(noise: Noise, gain: float) -> str:
    """A difference, in sigma too where that is known well enough."""
    text = f"{abs(gain):.4f}"
    if noise.degrees_of_freedom < _MIN_FREEDOM or not noise.sigma_bpb:
        return text
    return f"{text} ({abs(gain) / noise.sigma_bpb:.1f} sigma)"


def _versus(noise: Noise, gain: float, against: str) -> str:
    if gain == 0:
        return f"equals {against}"
    word = "beats" if gain > 0 else "is worse than"
    return f"{word} {against} by {_amount(noise, gain)}"
