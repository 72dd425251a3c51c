"""Commands that try out one train.py: an edit as a trial, a file once, an old trial again."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated

import typer

from autoresearch.cli import options
from autoresearch.cli.options import AsJson, Budget, RunSeed, TrialName, Where
from autoresearch.values.errors import UserError

if TYPE_CHECKING:
    from autoresearch.values.records import Measurement
    from autoresearch.workspace import Workspace


def train(
    workspace: Where = None,
    message: Annotated[
        str, typer.Option("--message", "-m", metavar="TEXT", help="What you tried, in one line.")
    ] = "",
    budget: Budget = None,
    seed: RunSeed = None,
    as_json: AsJson = False,
) -> None:
    """Try out an edit of train.py.

    With -m it is a trial: committed, run, judged; train.py on the disk is then the champion's,
    unless you edited it meanwhile. The first one calibrates. Without -m it is one run, scored but
    not judged, of the file as it is.

    \b
    Examples:
      autoresearch train -m "wider head"
      autoresearch train --budget 10 --seed 1 | grep ^val_bpb:
    """
    changes = options.given(trial={"budget_s": budget})
    opened = options.change(options.open_at(workspace), changes)
    if message:
        if seed is not None or budget is not None:
            raise UserError(
                "-m makes a trial: its budget is autoresearch.toml's, its seeds the referee's; "
                "drop --seed and --budget, or drop -m for a single run"
            )
        _try_out(opened, message, as_json=as_json)
        return
    source = opened.read_train()
    head = opened.repository.head()
    is_committed = source == opened.repository.read(head, "train.py")
    commit = head if is_committed else f"{head[:12]} with changes"
    measurement = _run_once(opened, source, commit, seed, "train.py as it is", parent=head)
    _finish_run(opened, measurement, as_json=as_json)


def _try_out(workspace: Workspace, message: str, *, as_json: bool) -> None:
    from autoresearch.assemble import try_out
    from autoresearch.values.text import one_line
    from autoresearch.views.console import trial_json
    from autoresearch.views.live import LiveView
    from autoresearch.views.show import print_outcome

    with LiveView(options.console(to_stderr=True), workspace.config) as view:
        trial, is_replaced = try_out(workspace, workspace.config, one_line(message), view)
    history, _ = options.read_history(workspace)
    if as_json:
        now = {"champion": history.champion, "is_champion_on_disk": is_replaced}
        options.print_json({**trial_json(trial, history), **now})
    else:
        print_outcome(options.console(), trial, history, is_on_disk=is_replaced)


def _run_once(
    workspace: Workspace,
    source: str,
    commit: str,
    seed: int | None,
    label: str,
    *,
    parent: str = "",
    is_script: bool = False,
) -> Measurement:
    """One run, with a progress line on standard error."""
    from autoresearch.assemble import train_once
    from autoresearch.values.records import Purpose
    from autoresearch.views.live import LiveView

    with LiveView(options.console(to_stderr=True), workspace.config) as view:
        view.run_started(Purpose.TRAIN, label)
        fresh = secrets.randbits(31) if seed is None else seed
        return train_once(
            workspace,
            workspace.config,
            source,
            commit=commit,
            description=label,
            seed=fresh,
            parent=parent,
            watch=view.watch,
            is_script=is_script,
        )


def _finish_run(workspace: Workspace, measurement: Measurement, *, as_json: bool) -> None:
    from autoresearch.values.records import to_json
    from autoresearch.views.show import print_run

    if as_json:
        options.print_json(to_json(measurement))
    else:
        print_run(options.console(), measurement, workspace.runs_folder)
    if not measurement.is_scored:
        raise typer.Exit(1)


def replay(
    trial: TrialName, workspace: Where = None, seed: RunSeed = None, as_json: AsJson = False
) -> None:
    """Run an old trial again and compare.

    Its commit and its budget, a fresh seed.

    \b
    Examples:
      autoresearch replay 12
      autoresearch replay champion --json
    """
    from autoresearch.search.imported import IMPORTER
    from autoresearch.values.records import to_json
    from autoresearch.views.show import compare_runs, find_trial, print_run

    opened = options.open_at(workspace)
    history, _ = options.read_history(opened)
    found = find_trial(history, trial)
    source = opened.repository.read(found.commit, "train.py")
    budget = found.runs[-1].budget_s if found.runs else None  # scores compare at one budget only
    same = options.change(opened, options.given(trial={"budget_s": budget}))
    label = f"replay of trial {found.trial_id}"
    is_script = found.researcher == IMPORTER
    measurement = _run_once(
        same, source, found.commit, seed, label, parent=found.parent, is_script=is_script
    )
    comparison = compare_runs(found, history, measurement)
    if as_json:
        facts = {"trial": found.trial_id, "comparison": comparison, "run": to_json(measurement)}
        options.print_json(facts)
    else:
        print_run(options.console(), measurement, opened.runs_folder)
        options.console().print(f"\n{comparison}", soft_wrap=True)
    if not measurement.is_scored:
        raise typer.Exit(1)
