"""Do ledger, git, artifacts and data still tell one story?

chain      every event follows from the one before it (ledger.py)
refs       every trial's commit is at its ref and whole, every branch at its champion
artifacts  measurements, sources and weights are the ones that were recorded
data       every byte is the manifest's, and the manifest the one that the sessions used

What a session that died left half done is no contradiction: the next one finishes it, and a note
says so. Weights that `gc` removed are not missed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from autoresearch.data.dataset import Dataset
from autoresearch.search.branch import TRAIN_NAME, Branch
from autoresearch.search.history import History
from autoresearch.search.ledger import Ledger, canonical
from autoresearch.system.files import sha256_file
from autoresearch.system.git import Repository
from autoresearch.values.errors import DataError, TrustViolation, UserError
from autoresearch.values.records import Measurement, measurement_from_json, to_json

MEASUREMENT_NAME, WEIGHTS_NAME = "measurement.json", "weights.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that does not agree, with what to do; a harmless one is only unfinished."""

    what: str
    remedy: str
    is_harmless: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was looked at, and what does not agree."""

    num_events: int
    num_trials: int
    num_runs: int
    findings: tuple[Finding, ...]
    head_hash: str = ""  # stands for all events: keep a copy elsewhere to notice a whole new chain

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that break trust."""
        return tuple(finding for finding in self.findings if not finding.is_harmless)


def verify(
    ledger: Ledger, repository: Repository, runs_folder: Path, open_data: Callable[[], Dataset]
) -> Checked:
    """Check everything; nothing is changed. Where the chain is broken the rest proves nothing."""
    refs = repository.refs("refs/")  # before the ledger, which a running session writes first
    try:
        branches = ledger.branches()
        num_events = ledger.verify()
    except TrustViolation as error:
        what, _, remedy = str(error).partition(". ")
        broken = Finding(what=what, remedy=remedy)
        return Checked(num_events=0, num_trials=0, num_runs=0, findings=(broken,))
    findings = [Finding(what=text, remedy="restore .git from a copy") for text in repository.fsck()]
    for history in branches:
        findings += _check_refs(history, Branch(repository, _tag(history)), refs)
    for event in ledger.events():
        if event.kind == "record_run":  # as it ended: an audit that came later is not in its folder
            run = measurement_from_json(event.body["run"])
            findings += _check_run(run, runs_folder / run.artifacts, repository)
    if branches:
        findings += _check_data(branches, open_data)
    return Checked(
        num_events=num_events,
        num_trials=sum(len(history.trials) for history in branches),
        num_runs=sum(len(history.runs) for history in branches),
        findings=tuple(findings),
        head_hash=ledger.head_hash,
    )


def _tag(history: History) -> str:
    return history.branch.removeprefix("autoresearch/")


def _check_refs(history: History, branch: Branch, refs: dict[str, str]) -> Iterator[Finding]:
    wanted = {branch.baseline_ref: history.baseline, branch.head_ref: history.champion}
    wanted |= {branch.trial_ref(trial.trial_id): trial.commit for trial in history.trials}
    # A death between ledger and git leaves these behind the ledger; `_resume` and `follow` mend it.
    late = {branch.trial_ref(trial.trial_id) for trial in history.trials[-1:]}
    earlier = {None, history.baseline, *(crown.commit for crown in history.crowns)}
    for ref, commit in wanted.items():
        at = refs.get(ref)
        if at == commit or (ref == branch.head_ref and not at and not history.crowns):
            continue
        is_late = (ref in late and at is None) or (ref == branch.head_ref and at in earlier)
        seen = f"at {at[:12]}" if at else "missing"
        yield Finding(
            what=f"{ref} is {seen}, the ledger says {commit[:12]}",
            remedy="`autoresearch run` finishes what the last session could not"
            if is_late and history.is_running
            else f"`git update-ref {ref} {commit}`",
            is_harmless=is_late and history.is_running,
        )
    for ref, commit in refs.items():
        if ref in wanted or not ref.startswith(f"refs/{history.branch}/"):
            continue
        yield Finding(
            what=f"{ref} is at {commit[:12]}, and the ledger knows nothing of it",
            remedy=f"look at it, then `git update-ref -d {ref}`",
        )


def _check_run(run: Measurement, folder: Path, repository: Repository) -> Iterator[Finding]:
    """One run's folder against its row."""
    path = folder / MEASUREMENT_NAME
    stands = f"the ledger's row of run {run.run_id} stands; restore {folder} from a copy"
    try:
        recorded = measurement_from_json(json.loads(path.read_text(encoding="utf-8")))
        if canonical(to_json(recorded)) != canonical(to_json(run)):
            yield Finding(what=f"{path} is not what the ledger recorded", remedy=stands)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        yield Finding(what=f"{path} is missing or damaged ({error})", remedy=stands)
    if run.source_sha256:
        yield from _check_hash(folder / TRAIN_NAME, run.source_sha256, stands)
        yield from _check_source(run, repository)
    weights = folder / WEIGHTS_NAME
    if weights.is_file():
        remedy = f"remove it; `autoresearch replay {run.commit[:12]}` runs the commit again"
        yield from _check_hash(weights, run.weights_sha256, remedy)


def _check_source(run: Measurement, repository: Repository) -> Iterator[Finding]:
    """That the commit holds what ran; runs of a file that no commit holds name none."""
    if len(run.commit) != 40:
        return
    try:
        source = repository.read(run.commit, TRAIN_NAME)
    except UserError as error:
        yield Finding(what=str(error), remedy="restore .git from a copy")
        return
    if hashlib.sha256(source.encode()).hexdigest() != run.source_sha256:
        what = f"{TRAIN_NAME} of commit {run.commit[:12]} is not what run {run.run_id} executed"
        yield Finding(what=what, remedy="restore .git from a copy")


def _check_hash(path: Path, sha256: str, remedy: str) -> Iterator[Finding]:
    try:
        seen = sha256_file(path)
    except OSError as error:
        yield Finding(what=f"{path} cannot be read ({error.strerror})", remedy=remedy)
        return
    if seen != sha256:
        what = f"{path} has sha256 {seen[:12]}, the ledger says {sha256[:12]}"
        yield Finding(what=what, remedy=remedy)


def _check_data(branches: list[History], open_data: Callable[[], Dataset]) -> Iterator[Finding]:
    try:
        dataset = open_data()
        dataset.verify()
    except DataError as error:
        what, _, remedy = str(error).partition("; ")
        yield Finding(what=what, remedy=remedy or "`autoresearch prepare --repair`")
        return
    for history in branches:
        for session in history.sessions:
            used = session.host.get("data_digest", dataset.digest)
            if used != dataset.digest:
                yield Finding(
                    what=f"a session of {history.branch} used data {used[:12]}, here is "
                    f"{dataset.digest[:12]}: its scores and new ones do not compare",
                    remedy="bring back the data, or go on with another session.tag",
                )
                break
