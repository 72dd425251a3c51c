"""What a ledger tells, folded into values: trials with their runs, the champion, what was refused.

A `History` is a snapshot of one research branch; the ledger makes a new one as events arrive, at a
cost that does not grow with the events that were folded before. Order is the order of the ledger,
never of the clock: `at` is for people and for the gaps between runs.

A trial that was open when a session died stays open here (its decision is None) with all its
finished runs, so the next session goes on with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autoresearch.values.records import (
    Call,
    Confirmation,
    Measurement,
    Purpose,
    Trial,
    Verdict,
    decision_from_json,
    measurement_from_json,
)
from autoresearch.values.text import figure

FRESH = frozenset({Purpose.CALIBRATE, Purpose.CHAMPION})
"""Purposes of runs that nothing was selected by: only these enter a mean or the noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One row of the ledger."""

    seq: int
    at: float
    kind: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crown:
    """A commit became the champion; trial_id is None for one that no trial made."""

    seq: int
    at: float
    commit: str
    trial_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedProposal:
    """A proposal that was never run, and why."""

    seq: int
    at: float
    researcher: str
    description: str
    reason: str
    kind: str = ""  # search.proposal.Refusal.kind, or why there was no proposal at all
    edit: str = ""  # the refused edit, cut: nothing that cost money is lost


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedTrial:
    """A row of a results.tsv made elsewhere; its score does not compare with ours."""

    commit: str
    val_bpb: float | None
    memory_gb: float
    status: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStart:
    """A session began, or went on where one had stopped."""

    seq: int
    at: float
    config: dict[str, Any]
    host: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """One research branch so far, in the order of the ledger."""

    branch: str = ""
    baseline: str = ""
    champion: str = ""
    champion_trial_id: int | None = None
    trials: tuple[Trial, ...] = ()
    runs: tuple[Measurement, ...] = ()
    crowns: tuple[Crown, ...] = ()
    refusals: tuple[RefusedProposal, ...] = ()
    sessions: tuple[SessionStart, ...] = ()
    notes: tuple[Event, ...] = ()
    confirmations: tuple[Confirmation, ...] = ()
    next_confirmation: int = 1  # its number, over all branches of the workspace
    num_holdout_queries: int = 0  # likewise
    imported: tuple[ImportedTrial, ...] = ()
    calls: tuple[Call, ...] = ()  # of models; search.spending adds them up
    refusals_in_a_row: int = 0
    began_seq: int = 0  # where the session in hand began; one that died and went on is one session
    baseline_constants: Mapping[str, Any] = field(default_factory=dict)
    baseline_fingerprint: str = ""  # of its syntax tree
    is_running: bool = False  # the last session has not recorded its stop: it goes on, or it died
    next_run_id: int = 1
    fingerprints: Mapping[str, int] = field(default_factory=dict)  # syntax tree -> trial_id

    def runs_of(self, commit: str, purposes: frozenset[Purpose] = FRESH) -> tuple[Measurement, ...]:
        """The runs of a commit made for one of `purposes`, by default the unselected ones."""
        return tuple(r for r in self.runs if r.commit == commit and r.purpose in purposes)

    def trial(self, trial_id: int) -> Trial | None:
        """The trial with this number."""
        return next((t for t in self.trials if t.trial_id == trial_id), None)

    def trial_like(self, source_fingerprint: str) -> Trial | None:
        """The latest trial whose program was the same; interrupted ones may be tried again."""
        trial = self.trial(self.fingerprints.get(source_fingerprint, -1))
        if trial and trial.decision and trial.decision.verdict is Verdict.INTERRUPTED:
            return None
        return trial

    @property
    def open_trial(self) -> Trial | None:
        """The trial in hand, left over by a session that died or stopped."""
        return next((t for t in reversed(self.trials) if t.decision is None), None)

    @property
    def open_confirmation(self) -> Confirmation | None:
        """The confirmation in hand, left over by a session that died or stopped."""
        return next((c for c in self.confirmations if c.decision is None), None)

    @property
    def last_confirmed(self) -> Confirmation | None:
        """The latest confirmation that a champion passed."""
        for confirmation in reversed(self.confirmations):
            decision = confirmation.decision
            if decision is not None and decision.verdict is Verdict.CONFIRMED:
                return confirmation
        return None

    @property
    def last_confirmed_trial_id(self) -> int:
        """The trial that made it, 0 where there is none."""
        last = self.last_confirmed
        return (last.trial_id or 0) if last else 0

    @property
    def champion_bpb(self) -> float | None:
        """The champion's mean over fresh runs; before there are any, what it was kept with."""
        runs = self.runs_of(self.champion)
        scores = [run.val_bpb for run in runs if run.val_bpb is not None]
        if scores:
            return sum(scores) / len(scores)
        trial = self.trial(self.champion_trial_id or 0)
        return trial.decision.val_bpb if trial and trial.decision else None

    @property
    def num_proposals(self) -> int:
        """Everything that researchers handed in, refused ones included: counts their turns."""
        return len(self.trials) + len(self.refusals)


@dataclass(slots=True)
class _Branch:
    """What is known of one branch while events arrive."""

    fields: dict[str, Any] = field(default_factory=dict)
    trials: dict[int, Trial] = field(default_factory=dict)
    lists: dict[str, list[Any]] = field(default_factory=dict)
    fingerprints: dict[str, int] = field(default_factory=dict)

    def append(self, name: str, value: Any) -> None:
        self.lists.setdefault(name, []).append(value)


class Fold:
    """Turns events into a History, each event once."""

    def __init__(self) -> None:
        self.seq = 0
        self.branch = ""
        self._branches: dict[str, _Branch] = {"": _Branch()}
        self._next_run_id = 1
        self._next_trial_id = 1
        self._next_confirmation = 1
        self._num_holdout_queries = 0
        self._handlers: dict[str, Callable[[Event, _Branch], None]] = {
            "start_session": self._start_session,
            "open_trial": self._open_trial,
            "record_run": self._record_run,
            "audit": self._audit,
            "close_trial": self._close_trial,
            "crown": self._crown,
            "refuse_proposal": self._refuse_proposal,
            "open_confirmation": self._open_confirmation,
            "ask_holdout": self._ask_holdout,
            "close_confirmation": self._close_confirmation,
            "import_results": self._import_results,
            "open_call": self._open_call,
            "close_call": self._close_call,
            "stop_session": self._stop_session,
        }
        self._made: dict[str, History] = {}

    @property
    def next_trial_id(self) -> int:
        """The number of the next trial, over all branches."""
        return self._next_trial_id

    @property
    def branches(self) -> list[str]:
        """Names of all branches that a session worked on."""
        return [name for name in self._branches if name]

    def add(self, event: Event) -> None:
        """Take in the next event; an unknown kind is a note."""
        self.seq = event.seq
        if event.kind == "start_session":
            self.branch = event.body["branch"]
        branch = self._branches.setdefault(self.branch, _Branch())
        handler = self._handlers.get(event.kind)
        if handler:
            handler(event, branch)
        else:
            branch.append("notes", event)
        self._made.clear()

    def history(self, branch: str | None = None) -> History:
        """The snapshot of a branch, by default of the one that the last session worked on."""
        name = self.branch if branch is None else branch
        if name not in self._made:
            known = self._branches.get(name, _Branch())
            fields = dict(known.fields)
            fields.update((key, tuple(values)) for key, values in known.lists.items())
            self._made[name] = History(
                branch=name,
                trials=tuple(known.trials.values()),
                next_run_id=self._next_run_id,
                next_confirmation=self._next_confirmation,
                num_holdout_queries=self._num_holdout_queries,
                fingerprints=dict(known.fingerprints),
                **fields,
            )
        return self._made[name]

    def _start_session(self, event: Event, branch: _Branch) -> None:
        body = event.body
        start = SessionStart(seq=event.seq, at=event.at, config=body["config"], host=body["host"])
        branch.append("sessions", start)
        branch.fields.setdefault("baseline", body["baseline"])
        branch.fields.setdefault("champion", body["baseline"])
        branch.fields.setdefault("baseline_constants", body["constants"])
        branch.fields.update(baseline_fingerprint=body.get("fingerprint", ""))
        if not branch.fields.get("is_running"):
            branch.fields["began_seq"] = event.seq
        branch.fields["is_running"] = True

    def _stop_session(self, event: Event, branch: _Branch) -> None:
        branch.fields["is_running"] = False
        branch.append("notes", event)

    def _open_trial(self, event: Event, branch: _Branch) -> None:
        body = dict(event.body)
        fingerprint = body.pop("fingerprint")
        trial = Trial(**body, at=event.at)
        branch.trials[trial.trial_id] = trial
        if fingerprint:
            branch.fingerprints[fingerprint] = trial.trial_id
        self._next_trial_id = max(self._next_trial_id, trial.trial_id + 1)
        branch.fields["refusals_in_a_row"] = 0

    def _record_run(self, event: Event, branch: _Branch) -> None:
        run = measurement_from_json(event.body["run"])
        branch.append("runs", run)
        self._next_run_id = max(self._next_run_id, run.run_id + 1)
        trial = branch.trials.get(event.body["trial_id"])
        if trial and run.commit == trial.commit:
            trial = dataclasses.replace(trial, runs=(*trial.runs, run))
            branch.trials[trial.trial_id] = trial
        if run.purpose is Purpose.CONFIRM:
            self._change_confirmation(branch, lambda c: {"runs": (*c.runs, run)})

    def _audit(self, event: Event, branch: _Branch) -> None:
        """A run that had ended was audited, because its trial is about to be kept."""
        run_id, report = event.body["run_id"], event.body["report"]
        runs = branch.lists["runs"]
        index = next(i for i in reversed(range(len(runs))) if runs[i].run_id == run_id)
        runs[index] = run = dataclasses.replace(runs[index], was_audited=True, audit=report)
        for trial in reversed(branch.trials.values()):
            if trial.commit == run.commit:
                known = tuple(run if each.run_id == run_id else each for each in trial.runs)
                branch.trials[trial.trial_id] = dataclasses.replace(trial, runs=known)
                break

    def _close_trial(self, event: Event, branch: _Branch) -> None:
        trial_id = event.body["trial_id"]
        decision = decision_from_json(event.body["decision"])
        branch.trials[trial_id] = dataclasses.replace(branch.trials[trial_id], decision=decision)

    def _crown(self, event: Event, branch: _Branch) -> None:
        commit, trial_id = event.body["commit"], event.body["trial_id"]
        branch.append("crowns", Crown(seq=event.seq, at=event.at, commit=commit, trial_id=trial_id))
        branch.fields.update(champion=commit, champion_trial_id=trial_id)

    def _import_results(self, event: Event, branch: _Branch) -> None:
        """It may come before the branch's first session."""
        branch = self._branches.setdefault(event.body["branch"], _Branch())
        for row in event.body["rows"]:
            branch.append("imported", ImportedTrial(**row))

    def _refuse_proposal(self, event: Event, branch: _Branch) -> None:
        branch.append("refusals", RefusedProposal(seq=event.seq, at=event.at, **event.body))
        branch.fields["refusals_in_a_row"] = branch.fields.get("refusals_in_a_row", 0) + 1

    def _open_call(self, event: Event, branch: _Branch) -> None:
        branch.append("calls", Call(seq=event.seq, **event.body))

    def _close_call(self, event: Event, branch: _Branch) -> None:
        """What it used; older versions wrote figures that cannot be, which settle nothing."""
        figures = (value for name, value in event.body.items() if name != "call_id")
        if any(figure(value) is None for value in figures):
            return
        calls = branch.lists["calls"]
        index = next(i for i, call in enumerate(calls) if call.call_id == event.body["call_id"])
        calls[index] = dataclasses.replace(calls[index], is_settled=True, **event.body)

    def _open_confirmation(self, event: Event, branch: _Branch) -> None:
        confirmation = Confirmation(**event.body, at=event.at)
        branch.append("confirmations", confirmation)
        self._next_confirmation = max(self._next_confirmation, confirmation.number + 1)

    def _ask_holdout(self, event: Event, branch: _Branch) -> None:
        self._num_holdout_queries += 1
        self._change_confirmation(branch, lambda _: {"asked_holdout": True})

    def _close_confirmation(self, event: Event, branch: _Branch) -> None:
        decision = decision_from_json(event.body["decision"])
        self._change_confirmation(branch, lambda _: {"decision": decision})

    def _change_confirmation(
        self, branch: _Branch, changes: Callable[[Confirmation], dict[str, Any]]
    ) -> None:
        """Replace the confirmation in hand; a run that belongs to none changes nothing."""
        known = branch.lists.get("confirmations", [])
        if known and known[-1].decision is None:
            known[-1] = dataclasses.replace(known[-1], **changes(known[-1]))
