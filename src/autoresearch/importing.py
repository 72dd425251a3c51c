"""`import`: scripts and histories made for karpathy/autoresearch, into a workspace.

A script runs once as it is, behind the same walls, and becomes a trial of the researcher "import".
What holds for a train.py of ours does not all hold for it (docs/import.md), so it is marked
unverified wherever it is shown, and it never becomes champion. A results.tsv goes into the ledger
as history, beside the trials.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from autoresearch.assemble import note_session, open_referee
from autoresearch.referee.host import RunSpec
from autoresearch.referee.training import Watch, never_stop
from autoresearch.search.branch import Branch
from autoresearch.search.history import History, ImportedTrial
from autoresearch.search.imported import IMPORTER, parse_results
from autoresearch.search.ledger import Ledger
from autoresearch.search.proposal import MAX_SOURCE_BYTES, REQUIRED, defines
from autoresearch.values.constants import parse_source
from autoresearch.values.errors import UserError
from autoresearch.values.records import Decision, Measurement, Outcome, Proposal, Purpose, Verdict
from autoresearch.workspace import Workspace, open_workspace

UNVERIFIED = "[unverified]"


def read_script(path: Path) -> str:
    """The text of a script in the reference's interface.

    Raises:
        UserError: it cannot be read or parsed, is too long, or is a train.py of ours.
    """
    text = _read(path)
    if len(text.encode()) > MAX_SOURCE_BYTES:
        raise UserError(f"{path} has more than {MAX_SOURCE_BYTES} bytes; weights belong elsewhere")
    tree = parse_source(text)
    if all(defines(tree, name) for name in REQUIRED):
        raise UserError(
            f"{path} has build_model and main, so it needs no import; commit it as train.py of a "
            "workspace and run `autoresearch train`"
        )
    return text


def import_script(
    workspace: Workspace, source: str, description: str, seed: int, watch: Watch = never_stop
) -> tuple[int, Measurement]:
    """Run a script once and write it down as a closed trial; the trial's number, and the run."""
    branch = Branch(workspace.repository, workspace.config.session.tag)
    with (
        Ledger.open(workspace.ledger_path) as ledger,
        open_referee(workspace, workspace.config) as referee,
    ):
        own = open_workspace(workspace.root).config  # a budget given by hand is this run's alone
        note_session(ledger, own, branch, referee)
        history = ledger.history(branch.name)
        proposal = Proposal(
            source=source,
            description=f"{UNVERIFIED} {description}",
            parent=history.champion,
            researcher=IMPORTER,
        )
        commit = branch.commit(proposal)
        run_id = ledger.history().next_run_id
        spec = RunSpec(
            run_id=run_id,
            source=source,
            commit=commit,
            purpose=Purpose.TRAIN,
            seed=seed,
            artifacts=workspace.runs_folder / f"{run_id:06d}",
            is_script=True,
        )
        measurement = referee.run(spec, watch)
        trial_id = ledger.open_trial(proposal, commit)
        branch.keep_reachable(trial_id, commit)
        ledger.record_run(measurement, trial_id)
        ledger.close_trial(trial_id, _decide(measurement, history))
        return trial_id, measurement


def _decide(run: Measurement, history: History) -> Decision:
    """Never a keep: a score without the seam's guarantees cannot make a champion."""
    if run.val_bpb is None:
        verdicts = {Outcome.TIMEOUT: Verdict.TIMEOUT, Outcome.CRASH: Verdict.CRASH}
        return Decision(verdict=verdicts.get(run.outcome, Verdict.INTERRUPTED), reason=run.reason)
    reason = (
        f"unverified ({run.unverified}), so it cannot become champion; val_bpb {run.val_bpb:.4f}"
    )
    champion = history.champion_bpb
    if champion is not None:
        reason += f", the champion's {champion:.4f}"
    return Decision(verdict=Verdict.DISCARD, reason=reason, val_bpb=run.val_bpb)


def import_results(
    workspace: Workspace, path: Path, git_branch: str = ""
) -> tuple[tuple[ImportedTrial, ...], int]:
    """Take a results.tsv into the ledger; the new rows, and how many of their commits are here now.

    Args:
        workspace: where to.
        path: the file.
        git_branch: fetched from the repository around the file, so that its commits can be read;
            of the reference's trials only kept ones are on it.

    Raises:
        UserError: the file is no such table, or there is no such branch.
    """
    rows = parse_results(_read(path), path.name)
    if git_branch:
        tag = workspace.config.session.tag
        ref = f"refs/autoresearch/{tag}/imported/{git_branch}"
        folders = path.absolute().parents
        root = next((folder for folder in folders if (folder / ".git").exists()), folders[0])
        workspace.repository.fetch(root, git_branch, ref)
    with Ledger.open(workspace.ledger_path) as ledger:
        branch = f"autoresearch/{workspace.config.session.tag}"
        known = set(ledger.history(branch).imported)
        new = tuple(row for row in rows if row not in known)
        if new:
            origin = f"{path.absolute()} {git_branch}".strip()
            rows_json = [asdict(row) for row in new]
            ledger.append("import_results", branch=branch, origin=origin, rows=rows_json)
    found = sum(workspace.repository.resolve(row.commit) is not None for row in new)
    return new, found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}; name a .py script or a .tsv") from error
