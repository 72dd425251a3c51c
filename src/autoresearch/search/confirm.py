"""Is the champion better, on fresh runs and on text that selected nothing?

Champion against *reference* (the last confirmed champion, else the baseline): as many fresh runs of
each, in the order A B, B A, A B, ..., from empty compile caches. First a one-sided Welch test on
validation; the level of the k-th confirmation of a workspace is 0.01 * 6 / (pi^2 k^2), which adds
up to 0.01 over however many there will be. Only what passes is shown to the sealed holdout, with
the weights of the very same runs: the gain must have the same sign there and be at least half as
large. One bit comes back, no figure; each question is counted before it is asked.

The pure half (`confirmation_due`, `next_confirm_step`, `judge_holdout`) says what to do, and
`Confirmer` does it. Runs are recorded as they end and their weights stay on disk until the verdict,
so after any death the confirmation goes on where it was.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Literal, Protocol

from autoresearch.referee.holdout import HeldRun, agrees_on_holdout
from autoresearch.referee.host import RunSpec
from autoresearch.referee.trial import Referee
from autoresearch.search.branch import Branch
from autoresearch.search.history import History
from autoresearch.search.ledger import Ledger
from autoresearch.search.noise import has_score, score_of
from autoresearch.values.config import Config, ConfirmSettings
from autoresearch.values.errors import TrialFailed
from autoresearch.values.records import (
    Confirmation,
    Decision,
    Measurement,
    Outcome,
    Purpose,
    Verdict,
    to_json,
)

ERROR_RATE = 0.01  # of all confirmations of a workspace together
LEAST_GAIN_FRAC = 0.5  # of the gain on validation, to be found on the holdout
WEIGHTS_NAME = "weights.safetensors"
_REFERENCE_FAILURES = 3
_MOST_DISTURBED = 12
_HOLDOUT_TRIES = 3
_LEVELS = ("none", "landlock", "bubblewrap")  # the weakest first
_FAILED = (Outcome.CHEAT, Outcome.CRASH, Outcome.TIMEOUT)


class Measure(Protocol):
    """Makes one run and records it."""

    def __call__(
        self, commit: str, purpose: Purpose, why: str, *, is_audited: bool
    ) -> Measurement: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmNeed:
    """The run that is wanted next."""

    arm: Literal["champion", "reference"]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldoutQuestion:
    """Validation is passed: do these runs gain at least `least_gain_bpb` on the holdout?"""

    champion: tuple[Measurement, ...]
    reference: tuple[Measurement, ...]
    passed: Decision  # on validation; its reason goes on with the holdout's answer

    @property
    def least_gain_bpb(self) -> float:
        """What the holdout has to show."""
        return LEAST_GAIN_FRAC * (self.passed.gain_bpb or math.inf)


def level_of(number: int) -> float:
    """The chance of a false confirmation that the k-th confirmation of a workspace may have."""
    return ERROR_RATE * 6 / (math.pi**2 * number**2)


def refusal(config: Config, history: History, sandbox: str) -> str:
    """Why nothing can be confirmed now, or ""; `sandbox` is the level that runs have here."""
    least, settings = config.confirm.least_sandbox, config.confirm
    if _LEVELS.index(sandbox) < _LEVELS.index(least):
        return (
            f"the sandbox level here is {sandbox}, and confirm.least_sandbox asks for {least}; "
            "`autoresearch doctor` says how to get it"
        )
    in_hand = history.open_confirmation
    if history.num_holdout_queries >= settings.max_queries and not (
        in_hand and in_hand.asked_holdout
    ):
        return (
            f"the holdout was asked {history.num_holdout_queries} times, and confirm.max_queries "
            "allows no more: each answer tells a little about it"
        )
    if in_hand:
        return ""
    if history.champion == history.baseline:
        return "nothing was kept yet: the champion is the baseline; go on with `autoresearch run`"
    last = history.last_confirmed
    if last is not None and last.champion == history.champion:
        return f"the champion {last.champion[:7]} is confirmed already"
    return ""


def confirmation_due(config: Config, history: History, sandbox: str, *, is_end: bool) -> str:
    """Why a session should confirm its champion now, unasked, or ""."""
    if refusal(config, history, sandbox):
        return ""
    if history.open_confirmation:
        return "a confirmation was left unfinished"
    if any(c.champion == history.champion for c in history.confirmations):
        return ""  # once is enough: trying until it passes is what the levels guard against
    if is_end and config.confirm.at_end:
        return "the session ends"
    tried = {confirmation.champion for confirmation in history.confirmations}
    crowned = [crown.commit for crown in history.crowns]
    num_keeps = len(list(takewhile(lambda commit: commit not in tried, reversed(crowned))))
    every = 1 if config.judge.policy == "confirm-all" else config.confirm.every_keeps
    return f"{num_keeps} keeps since the last one" if every and num_keeps >= every else ""


def next_confirm_step(
    settings: ConfirmSettings, confirmation: Confirmation, usable: frozenset[int]
) -> ArmNeed | HoldoutQuestion | Decision:
    """The run that is wanted next, the question to the holdout, or a verdict without it.

    `usable` are the runs whose weights are still there. Disturbed and interrupted runs, and scored
    ones that lost their weights, are as if they had not been.
    """
    runs = [r for r in confirmation.runs if not r.is_scored or r.run_id in usable]
    champion = [run for run in runs if run.commit == confirmation.champion]
    reference = [run for run in runs if run.commit == confirmation.reference]
    failure = _failure(champion, reference)
    if failure:
        return failure
    champion = [run for run in champion if has_score(run)][: settings.runs]
    reference = [run for run in reference if has_score(run)][: settings.runs]
    need = _next_arm(settings.runs, len(champion), len(reference))
    if need:
        return need
    passed = judge_validation(
        confirmation, [score_of(run) for run in reference], [score_of(run) for run in champion]
    )
    if passed.verdict is not Verdict.CONFIRMED:
        return passed
    return HoldoutQuestion(champion=tuple(champion), reference=tuple(reference), passed=passed)


def judge_validation(
    confirmation: Confirmation, reference: Sequence[float], champion: Sequence[float]
) -> Decision:
    """The Welch test; `confirmed` is only half of it, for the holdout has not been asked."""
    ours, theirs = statistics.fmean(champion), statistics.fmean(reference)
    gain = theirs - ours
    level, chance = level_of(confirmation.number), chance_of_luck(reference, champion)
    word = "lower" if gain > 0 else "higher"
    reason = (
        f"{len(champion)} fresh runs of the champion scored {ours:.4f}, {len(reference)} of "
        f"{_name(confirmation)} in turn {theirs:.4f}: {abs(gain):.4f} {word}"
    )
    is_better = False
    if len(set(champion)) == 1:
        reason += ". Its runs scored alike whatever the seed, so luck cannot be told from gain"
    elif gain <= 0:
        reason += ", which is no gain"
    else:
        is_better = chance <= level
        verb = "allows" if is_better else "allows only"
        nth = f"confirmation {confirmation.number}"
        reason += f". Luck alone would do that with probability {chance:.2g}; {nth} {verb} "
        reason += f"{level:.2g}"
    if not is_better:
        reason += ". The holdout was not asked"
    verdict = Verdict.CONFIRMED if is_better else Verdict.UNCONFIRMED
    return Decision(verdict=verdict, reason=reason, val_bpb=ours, gain_bpb=gain)


def judge_holdout(question: HoldoutQuestion, agrees: bool) -> Decision:
    """The verdict, once the holdout has said its one bit."""
    passed = question.passed
    verdict = Verdict.CONFIRMED if agrees else Verdict.UNCONFIRMED
    more = (
        "The sealed holdout agrees"
        if agrees
        else "The sealed holdout does not agree: less than half of the gain is there"
    )
    return Decision(
        verdict=verdict,
        reason=f"{passed.reason}. {more}",
        val_bpb=passed.val_bpb,
        gain_bpb=passed.gain_bpb,
    )


def chance_of_luck(reference: Sequence[float], champion: Sequence[float]) -> float:
    """How often equal programs would differ by this much (Welch's t test, one-sided).

    A score that is no number is no evidence: 1.
    """
    from scipy.stats import ttest_ind_from_stats

    if not all(map(math.isfinite, (*reference, *champion))):
        return 1.0
    arms = [
        (statistics.fmean(arm), statistics.stdev(arm), len(arm)) for arm in (reference, champion)
    ]
    if not any(spread for _, spread, _ in arms):
        return 0.0 if arms[0][0] > arms[1][0] else 1.0
    test = ttest_ind_from_stats(*arms[0], *arms[1], equal_var=False, alternative="greater")
    return float(test.pvalue)


def _failure(champion: Sequence[Measurement], reference: Sequence[Measurement]) -> Decision | None:
    for run in champion:
        is_nan = run.outcome is Outcome.SCORED and not has_score(run)
        if run.outcome in _FAILED or is_nan:
            what = run.reason or "its score is not a finite number"
            reason = f"run {run.run_id} of the champion ended as {run.outcome.value}: {what}"
            return Decision(
                verdict=Verdict.UNCONFIRMED, reason=f"{reason}. The holdout was not asked"
            )
    disturbed = [r for r in (*champion, *reference) if r.outcome is Outcome.DISTURBED]
    if len(disturbed) >= _MOST_DISTURBED:
        reason = f"the machine disturbed {len(disturbed)} runs, the last: {disturbed[-1].reason}"
        return Decision(verdict=Verdict.UNCONFIRMED, reason=f"{reason}. The holdout was not asked")
    failed = [run for run in reference if run.outcome in _FAILED]
    if len(failed) < _REFERENCE_FAILURES:
        return None
    what = f"{len(failed)} runs of what the champion is held against gave no score"
    reason = f"{what}, the last: {failed[-1].reason}. The holdout was not asked"
    return Decision(verdict=Verdict.UNCONFIRMED, reason=reason)


def _next_arm(num_runs: int, num_champion: int, num_reference: int) -> ArmNeed | None:
    """The first place of A B, B A, A B, ... (A the reference) that no run fills yet."""
    left = {"reference": num_reference, "champion": num_champion}
    for pair in range(num_runs):
        arms: list[Literal["reference", "champion"]] = ["reference", "champion"]
        for arm in arms if pair % 2 == 0 else reversed(arms):
            if left[arm]:
                left[arm] -= 1
                continue
            number = (num_champion if arm == "champion" else num_reference) + 1
            return ArmNeed(arm=arm, why=f"confirmation: run {number} of {num_runs} of the {arm}")
    return None


def _name(confirmation: Confirmation) -> str:
    return f"the reference {confirmation.reference[:7]}"


class Confirmer:
    """Carries a confirmation out, or on."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        branch: Branch,
        referee: Referee,
        artifacts: Path,
        measure: Measure,
    ) -> None:
        self.config = config
        self.ledger = ledger
        self.branch = branch
        self.referee = referee
        self.artifacts = artifacts
        self.measure = measure

    def run(self, is_stopping: Callable[[], bool]) -> Confirmation | None:
        """The closed confirmation, or None where a person stopped the session before its end."""
        if self.ledger.history().open_confirmation is None:
            self._open()
        while not is_stopping():
            confirmation = self.ledger.history().open_confirmation
            assert confirmation is not None, "it is open until it has a verdict"
            usable = frozenset(r.run_id for r in confirmation.runs if self._weights(r).is_file())
            step = next_confirm_step(self.config.confirm, confirmation, usable)
            if isinstance(step, ArmNeed):
                self._measure(confirmation, step)
                continue
            decision = self._ask(confirmation, step) if isinstance(step, HoldoutQuestion) else step
            return self._close(confirmation, decision)
        return None

    def _open(self) -> None:
        history = self.ledger.history()
        last = history.last_confirmed
        self.ledger.append(
            "open_confirmation",
            number=history.next_confirmation,
            champion=history.champion,
            reference=last.champion if last else history.baseline,
            trial_id=history.champion_trial_id,
        )

    def _measure(self, confirmation: Confirmation, need: ArmNeed) -> None:
        is_champion = need.arm == "champion"
        commit = confirmation.champion if is_champion else confirmation.reference
        run = self.measure(commit, Purpose.CONFIRM, need.why, is_audited=is_champion)
        if run.is_scored and self.referee.has_weights(run.run_id):
            self.referee.save_weights(run.run_id, self._weights(run))

    def _ask(self, confirmation: Confirmation, question: HoldoutQuestion) -> Decision:
        """The holdout's answer, counted before it is asked; once however often it is tried."""
        if not confirmation.asked_holdout:
            self.ledger.append("ask_holdout", number=confirmation.number)
        champion, reference = map(self._held, (question.champion, question.reference))
        for tries_left in reversed(range(_HOLDOUT_TRIES)):
            try:
                least = question.least_gain_bpb
                agrees = agrees_on_holdout(self.referee.scoring, champion, reference, least)
                return judge_holdout(question, agrees)
            except TrialFailed as failure:
                if failure.outcome is not Outcome.DISTURBED or not tries_left:
                    reason = f"{question.passed.reason}. On the holdout: {failure.reason}"
                    return Decision(verdict=Verdict.UNCONFIRMED, reason=reason)
        raise AssertionError("the last try returns")

    def _held(self, runs: Sequence[Measurement]) -> list[HeldRun]:
        return [
            HeldRun(
                spec=RunSpec(
                    run_id=run.run_id,
                    source=self.branch.read(run.commit),
                    commit=run.commit,
                    purpose=run.purpose,
                    seed=run.seed,
                    artifacts=self.artifacts / run.artifacts,
                ),
                weights=self._weights(run),
                sha256=run.weights_sha256,
            )
            for run in runs
        ]

    def _close(self, confirmation: Confirmation, decision: Decision) -> Confirmation:
        self.ledger.append(
            "close_confirmation", number=confirmation.number, decision=to_json(decision)
        )
        for run in confirmation.runs:
            self._weights(run).unlink(missing_ok=True)
        return self.ledger.history().confirmations[-1]

    def _weights(self, run: Measurement) -> Path:
        return self.artifacts / run.artifacts / WEIGHTS_NAME
