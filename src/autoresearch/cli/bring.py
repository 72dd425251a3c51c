"""The command `import`: what was made for the reference."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoresearch.cli import options
from autoresearch.cli.options import AsJson, Budget, RunSeed, Where

if TYPE_CHECKING:
    from autoresearch.workspace import Workspace


def import_file(
    file: Annotated[Path, typer.Argument(help="A train.py of the reference's kind, or a .tsv.")],
    workspace: Where = None,
    message: Annotated[
        str, typer.Option("--message", "-m", metavar="TEXT", help="What the script is.")
    ] = "",
    git_branch: Annotated[
        str, typer.Option("--branch", metavar="NAME", help="Of the repository around a .tsv.")
    ] = "",
    budget: Budget = None,
    seed: RunSeed = None,
    as_json: AsJson = False,
) -> None:
    """Run a script, or take in a history, made for the reference.

    A script runs unmodified, once, on this workspace's data. Its score is made by our scorer but
    marked unverified: it keeps its own clock and is scored in its own process. A results.tsv
    becomes history beside the trials.

    \b
    Examples:
      autoresearch import ~/autoresearch/train.py
      autoresearch import ~/autoresearch/results.tsv --branch autoresearch/mar8
    """
    opened = options.change(options.open_at(workspace), options.given(trial={"budget_s": budget}))
    if file.suffix == ".tsv":
        from autoresearch.importing import import_results

        rows, found = import_results(opened, file, git_branch)
        if as_json:
            options.print_json({"imported": len(rows), "commits_found": found})
            return
        told = f"{len(rows)} new rows of {file}; {found} of their commits are in this repository"
        options.console().print(told, soft_wrap=True)
        return
    _run_script(opened, file, message or file.name, seed, as_json=as_json)


def _run_script(
    opened: Workspace, file: Path, message: str, seed: int | None, *, as_json: bool
) -> None:
    from autoresearch.importing import import_script, read_script
    from autoresearch.values.records import Purpose, to_json
    from autoresearch.views.live import LiveView
    from autoresearch.views.show import print_run

    source = read_script(file)
    with LiveView(options.console(to_stderr=True), opened.config) as view:
        view.run_started(Purpose.TRAIN, message)
        fresh = secrets.randbits(31) if seed is None else seed
        trial_id, run = import_script(opened, source, message, fresh, view.watch)
    if as_json:
        options.print_json({"trial": trial_id, "run": to_json(run)})
    else:
        options.console().print(f"trial {trial_id}")
        print_run(options.console(), run, opened.runs_folder)
    if not run.is_scored:
        raise typer.Exit(1)
