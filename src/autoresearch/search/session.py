"""The loop: propose, run, judge, keep or revert, again, until a person or a stop rule ends it.

`Session.run` is the whole of it. The ledger comes first: a trial exists once it is written there,
its runs are written as they end, and after any death the next session goes on from the record. Git
refs follow the ledger and never lead it: a trial's commit stays reachable at its own ref whatever
its verdict, and the research branch moves by fast-forward.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from autoresearch.referee.host import RunSpec
from autoresearch.referee.trial import Referee, save_measurement
from autoresearch.search.branch import Branch
from autoresearch.search.confirm import Confirmer, confirmation_due
from autoresearch.search.disturbance import set_aside
from autoresearch.search.early_stop import EarlyStop, judge_stopped, stops_too_much
from autoresearch.search.history import History
from autoresearch.search.hook import run_hook
from autoresearch.search.imported import IMPORTER
from autoresearch.search.judge import (
    Need,
    champion_trouble,
    next_champion_run_due,
    next_step,
    simplification_cost,
)
from autoresearch.search.ledger import Ledger
from autoresearch.search.noise import measure_noise, should_pair
from autoresearch.search.observer import Observer
from autoresearch.search.oddity import find_oddity
from autoresearch.search.proposal import check_proposal, diff_of, tidy
from autoresearch.search.researchers import Exhausted, Researcher, Unusable, ask
from autoresearch.search.stop import Interrupts, pause_s, stop_reason
from autoresearch.system.files import writing
from autoresearch.values.config import Config
from autoresearch.values.errors import Interrupted, TrialFailed, UserError
from autoresearch.values.records import (
    Confirmation,
    Decision,
    Measurement,
    Outcome,
    Proposal,
    Purpose,
    Trial,
    Verdict,
)

DISTURBED_RERUNS = 3
MOST_EDIT = 8000  # characters of a refused edit that the ledger keeps


class Session:
    """One workspace's loop. The caller opens and closes ledger and referee."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        branch: Branch,
        referee: Referee,
        researcher: Researcher,
        observer: Observer,
        artifacts: Path,
    ) -> None:
        self.config = config
        self.ledger = ledger
        self.branch = branch
        self.referee = referee
        self.researcher = researcher
        self.observer = observer
        self.artifacts = artifacts
        self.early_stop = EarlyStop(config.judge, config.trial.budget_s)
        self.interrupts = Interrupts()
        self._began = referee.host.clock.monotonic()

    def run(self) -> str:
        """The loop; why it ended.

        Raises:
            Interrupted: a second Ctrl-C; the trial in hand is recorded as interrupted.
            UserError: the baseline does not run.
            TrustViolation: ledger and refs disagree.
        """
        with self.interrupts:
            self._resume()
            try:
                reason = self._search()
                self._confirm_if_due(is_end=True)
            except KeyboardInterrupt:
                self._interrupt()
                raise Interrupted("stopped at once; `autoresearch run` goes on from here") from None
            self._stop(reason)
            return reason

    def _search(self) -> str:
        """Trial after trial; why it ended."""
        try:
            while not (reason := self._stop_reason()):
                self._run_champion_if_due()
                self._confirm_if_due()
                trial = self.history.open_trial or self._next_trial()
                if trial:
                    self._settle(trial, self._judge(trial))
        except Exhausted as end:
            return str(end)
        return reason

    def confirm(self) -> Confirmation:
        """Confirm the champion because a person asks; `Interrupted` by Ctrl-C keeps what ran."""
        with self.interrupts:
            self._resume()
            try:
                confirmation = self._confirm()
            except KeyboardInterrupt:
                confirmation = None
            self._stop("the confirmation has its verdict" if confirmation else "stopped by Ctrl-C")
        if confirmation is None:
            raise Interrupted("stopped; `autoresearch confirm` goes on from here")
        return confirmation

    def _confirm_if_due(self, *, is_end: bool = False) -> None:
        level = self.referee.host.sandbox.level
        why = confirmation_due(self.config, self.history, level, is_end=is_end)
        if why and not self.interrupts.is_wanted:
            self.observer.note(f"the champion is confirmed on fresh runs: {why}")
            self._confirm()

    def _confirm(self) -> Confirmation | None:
        """A confirmation to its verdict, or as far as a person lets it come."""
        host = (self.config, self.ledger, self.branch, self.referee, self.artifacts)
        confirmation = Confirmer(*host, self._measure).run(lambda: self.interrupts.is_wanted)
        if confirmation and confirmation.decision:
            decision = confirmation.decision
            self.observer.note(f"{decision.verdict.value}: {decision.reason}")
        return confirmation

    @property
    def history(self) -> History:
        """What the ledger knows by now."""
        return self.ledger.history()

    def _resume(self) -> None:
        """Bring the branch to where the ledger is, finishing what a death cut off."""
        history = self.history
        left = history.open_trial
        if left is not None and left.researcher == IMPORTER:  # a death between two lines of import
            reason = "the import was cut off"
            decision = Decision(verdict=Verdict.INTERRUPTED, reason=reason)
            self.ledger.close_trial(left.trial_id, decision)
        for trial in history.trials[-1:]:
            is_kept = trial.decision is not None and trial.decision.verdict is Verdict.KEEP
            if is_kept and history.champion != trial.commit:
                self.ledger.crown(trial.commit, trial.trial_id)
        self.branch.follow(self.history)
        self._limit_scoring()  # the holdout may be asked before anything runs
        self.observer.session_started(self.history)

    def _stop_reason(self) -> str:
        if self.interrupts.is_wanted:
            return "stopped by Ctrl-C"
        hours = (self.referee.host.clock.monotonic() - self._began) / 3600
        return stop_reason(self.config.session, self.history, self.history.champion_bpb, hours)

    def _run_champion_if_due(self) -> None:
        """Calibration, fresh runs of a new champion, a look at drift every so often."""
        clock, judging = self.referee.host.clock, self.config.judge
        while need := next_champion_run_due(judging, self.history, clock.wall(), self._is_paired):
            self._measure(self.history.champion, need.purpose, need.why)
            self._require_champion()
            if self.interrupts.is_wanted:
                return

    def _limit_scoring(self) -> None:
        self.referee.scoring.limit_by(self.history.runs_of(self.history.baseline))

    @property
    def _is_paired(self) -> bool:
        return should_pair(self.config.judge, self.referee.host.device, self.history)

    def _require_champion(self) -> None:
        """A baseline that fails, or a champion that always does, is for a person to mend."""
        history = self.history
        last = history.runs[-1]
        is_new = history.champion == history.baseline and not any(r.is_scored for r in history.runs)
        trouble = last.reason if is_new and not last.is_scored else champion_trouble(history)
        if trouble:
            where = self.artifacts / last.artifacts / "stdout.log"
            raise UserError(f"the champion gives no score: {trouble}; its output is in {where}")

    def _next_trial(self) -> Trial | None:
        """The next proposal as a trial; None where it is not worth a run, which is written down."""
        history = self.history
        if not self._pause_for_ideas(history.refusals_in_a_row):
            return None
        parent = self.branch.read(history.champion)
        try:
            proposal = tidy(ask(self.researcher, history, parent), parent)
        except Unusable as failure:
            nothing = failure.as_proposal(self.researcher.name, history.champion)
            self._refuse(nothing, failure.kind, str(failure), failure.edit)
            return None
        refusal = check_proposal(proposal.source, self.branch.read(proposal.parent), history)
        if refusal is None:
            return self._open_trial(proposal)
        self._refuse(proposal, refusal.kind, refusal.reason, diff_of(parent, proposal))
        return None

    def _refuse(self, proposal: Proposal, kind: str, reason: str, edit: str) -> None:
        """Write down why there is no trial."""
        self.ledger.refuse_proposal(proposal, reason, kind, edit[:MOST_EDIT])
        self.observer.note(f"not run: {proposal.description}: {reason}")

    def _pause_for_ideas(self, refusals: int) -> bool:
        """Wait after every tenth refusal in a row, longer each time; False: it is time to end."""
        left_s = pause_s(refusals, self.config.researcher.backoff_s)
        if left_s:
            why = f"{refusals} proposals in a row were not worth running; waiting {left_s:.0f} s"
            self._note("pause", why)
        while left_s > 0 and not self._stop_reason():
            self.referee.host.clock.sleep(min(left_s, 1.0))
            left_s -= 1.0
        return not self._stop_reason()

    def _open_trial(self, proposal: Proposal) -> Trial:
        """Commit the proposal and write it down."""
        commit = self.branch.commit(proposal)
        trial_id = self.ledger.open_trial(proposal, commit)
        self.branch.keep_reachable(trial_id, commit)
        self.observer.trial_started(self._trial(trial_id))
        return self._trial(trial_id)

    def _judge(self, trial: Trial) -> Decision:
        """Runs of the candidate and, where wanted, of the champion, until a verdict."""
        while True:
            history = self.history
            trial = self._trial(trial.trial_id)
            last = [run.outcome for run in trial.runs[-DISTURBED_RERUNS:]]
            if last == [Outcome.DISTURBED] * DISTURBED_RERUNS:
                reason = f"not judged: the machine was disturbed {len(last)} times in a row"
                return Decision(verdict=Verdict.DISCARD, reason=reason)
            if stopped := judge_stopped(trial.runs):
                return stopped
            step = next_step(
                self.config.judge,
                measure_noise(history, self._is_paired),
                history.runs_of(history.champion, frozenset(Purpose)),
                trial.runs,
                is_simplification=trial.is_simplification,
                is_paired=self._is_paired,
                now=self.referee.host.clock.wall(),
                simplification_cost_bpb=simplification_cost(
                    history, history.last_confirmed_trial_id
                ),
            )
            if isinstance(step, Need):
                self._measure_for(trial, step)
            elif step.verdict is Verdict.KEEP and (cheat := self._audit_last(trial)):
                return cheat
            elif step.verdict is not Verdict.KEEP or self._deciding_run(trial):
                return step

    def _measure_for(self, trial: Trial, need: Need) -> None:
        if need.who == "champion":
            self._measure(self.history.champion, need.purpose, need.why)
            self._require_champion()
        else:
            is_audited = (
                need.wants_audit or secrets.randbelow(1000) < 1000 * self.config.judge.audit_frac
            )
            self._measure(trial.commit, need.purpose, need.why, trial=trial, is_audited=is_audited)

    def _deciding_run(self, trial: Trial) -> Measurement | None:
        """The last scored run whose weights are still in memory, to be audited and kept."""
        runs = [run for run in trial.runs if run.is_scored and self.referee.has_weights(run.run_id)]
        return runs[-1] if runs else None

    def _audit_last(self, trial: Trial) -> Decision | None:
        """The second presentation that every trial about to be kept goes through.

        A verdict if it fails.
        """
        run = self._deciding_run(trial)
        if run is None:  # resumed after a death: the weights are gone, so a run is made again
            why = "audit after a restart"
            self._measure(trial.commit, Purpose.REPLICATE, why, trial=trial, is_audited=True)
            return None
        if run.was_audited:
            return None
        try:
            report = self.referee.audit(run.run_id)
        except TrialFailed as failure:
            if failure.outcome is Outcome.DISTURBED:
                return None  # no weights are left to keep: it will be run again
            return Decision(verdict=Verdict(failure.outcome), reason=failure.reason)
        self.ledger.append("audit", run_id=run.run_id, report=report)
        return None

    def _measure(
        self,
        commit: str,
        purpose: Purpose,
        why: str,
        *,
        trial: Trial | None = None,
        is_audited: bool = False,
    ) -> Measurement:
        """One run, recorded; again, with the same seed, where the machine was disturbed."""
        seed = secrets.randbits(31)
        may_cache = purpose is not Purpose.CONFIRM  # both of its arms start from nothing
        for _ in range(DISTURBED_RERUNS):
            self.observer.run_started(purpose, why)
            self._limit_scoring()
            run_id = self.history.next_run_id
            spec = RunSpec(
                run_id=run_id,
                source=self.branch.read(commit),
                commit=commit,
                purpose=purpose,
                seed=seed,
                artifacts=self.artifacts / f"{run_id:06d}",
                is_audited=is_audited,
                cache_parent=trial.parent if trial else commit if may_cache else "",
            )
            self.early_stop.begin(self.history, purpose)
            measurement = self.early_stop.sign(self.referee.run(spec, self._watch))
            measurement = set_aside(self.config.disturbed, measurement, self.history.runs)
            save_measurement(spec, measurement)
            if trial:
                patch = spec.artifacts / "diff.patch"
                with writing(patch):
                    patch.write_text(self.branch.diff(trial.parent, trial.commit), encoding="utf-8")
            oddity = find_oddity(measurement, self.history.runs)
            self.ledger.record_run(measurement, trial.trial_id if trial else None)
            self.observer.run_finished(measurement)
            if trial is None and may_cache and measurement.is_scored:  # what all start from
                self.referee.host.cache.keep(run_id, commit)
            if oddity:
                self._note("oddity", oddity)
            if measurement.outcome is not Outcome.DISTURBED:
                break
        return measurement

    def _watch(self, elapsed_s: float, telemetry: dict[str, Any]) -> str:
        self.observer.progress(elapsed_s, telemetry)
        return self.early_stop.look(elapsed_s, telemetry)

    def _settle(self, trial: Trial, decision: Decision) -> None:
        """Write the verdict down; where it is `keep`, the branch follows."""
        run = self._deciding_run(self._trial(trial.trial_id))
        if decision.verdict is Verdict.KEEP and run is not None:
            weights = self.artifacts / run.artifacts / "weights.safetensors"
            self.referee.save_weights(run.run_id, weights)
            self.referee.host.cache.keep(run.run_id, trial.commit)
        self.ledger.close_trial(trial.trial_id, decision)
        if decision.verdict is Verdict.KEEP:
            self.ledger.crown(trial.commit, trial.trial_id)
            self.branch.follow(self.history)
            facts = {"trial": trial.trial_id, "commit": trial.commit, "val_bpb": decision.val_bpb}
            self._hook(self.config.session.on_keep, "keep", facts)
        self.observer.trial_closed(self._trial(trial.trial_id), self.history)
        if too_much := stops_too_much(self.history):
            self._note("early_stop", too_much)

    def _interrupt(self) -> None:
        """A person does not want to wait: the trial in hand is recorded as interrupted."""
        trial = self.history.open_trial
        if trial is not None:
            decision = Decision(verdict=Verdict.INTERRUPTED, reason="stopped by a person")
            self.ledger.close_trial(trial.trial_id, decision)
            self.observer.trial_closed(self._trial(trial.trial_id), self.history)
        self._stop("stopped at once by Ctrl-C")

    def _stop(self, reason: str) -> None:
        self.ledger.stop_session(reason)
        self.referee.host.cache.sweep()
        history = self.history
        facts = {"reason": reason, "champion": history.champion, "val_bpb": history.champion_bpb}
        self._hook(self.config.session.on_stop, "stop", facts)
        self.observer.session_stopped(reason, history)

    def _hook(self, command: str, event: str, facts: dict[str, Any]) -> None:
        problem = run_hook(command, event, facts)
        if problem:
            self._note("hook", problem)

    def _note(self, kind: str, text: str) -> None:
        self.ledger.note(kind, text)
        self.observer.note(text)

    def _trial(self, trial_id: int) -> Trial:
        trial = self.history.trial(trial_id)
        assert trial is not None, "the ledger gave this number out"
        return trial
