"""Commands that only show. They read the ledger, also beside a running session."""

from __future__ import annotations

import dataclasses
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoresearch.cli import options
from autoresearch.cli.options import AsJson, RunSeed, TrialName, Where
from autoresearch.values.errors import TrustViolation

if TYPE_CHECKING:
    from autoresearch.search.verify import Checked


def status(
    workspace: Where = None,
    last: Annotated[int, typer.Option(min=1, metavar="N", help="Trials to list.")] = 20,
    all_trials: Annotated[bool, typer.Option("--all", help="List all trials.")] = False,
    as_json: AsJson = False,
) -> None:
    """Champion, gain, verdicts, last trials.

    Works beside a running session, as all commands that only show.

    \b
    Examples:
      autoresearch status
      autoresearch status --all --json
    """
    opened = options.open_at(workspace)
    options.print_status(opened, last=0 if all_trials else last, as_json=as_json)


def verify(workspace: Where = None, as_json: AsJson = False) -> None:
    """Check that ledger, git, artifacts and data agree.

    Exit code 3 where they do not, with what and what to do; nothing is changed.

    \b
    Examples:
      autoresearch verify
      autoresearch verify --json
    """
    from autoresearch.data.dataset import open_dataset
    from autoresearch.search.ledger import Ledger
    from autoresearch.search.verify import verify as check
    from autoresearch.system.files import cache_home

    opened = options.open_at(workspace)
    with Ledger.read(opened.ledger_path) as ledger:
        checked = check(
            ledger,
            opened.repository,
            opened.runs_folder,
            lambda: open_dataset(opened.config.data, cache_home()),
        )
    if as_json:
        options.print_json({"agrees": not checked.problems, **dataclasses.asdict(checked)})
    else:
        _print_checked(checked)
    if checked.problems:
        raise typer.Exit(TrustViolation.exit_code)


def _print_checked(checked: Checked) -> None:
    from rich.text import Text

    console = options.console()
    for finding in checked.findings:
        word = Text("note  ", "yellow") if finding.is_harmless else Text("WRONG ", "bold red")
        console.print(word + Text(finding.what), soft_wrap=True)
        console.print(Text(f"      -> {finding.remedy}", style="dim"), soft_wrap=True)
    counts = f"{checked.num_events} events, {checked.num_trials} trials, {checked.num_runs} runs"
    if checked.head_hash:
        counts += f", last event {checked.head_hash[:16]}"
    console.print(f"{counts}: {'do not agree' if checked.problems else 'all as recorded'}")


def report(
    workspace: Where = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="[default: the workspace]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write summary.md, progress.png and results.tsv.

    \b
    Examples:
      autoresearch report
      autoresearch report --out ~/reports/tonight
    """
    from autoresearch.views.report import write_report

    opened = options.open_at(workspace)
    history, noise = options.read_history(opened)
    paths = write_report(out or opened.root, history, noise, opened.config)
    if as_json:
        options.print_json({"report": paths})
        return
    for path in paths:
        options.console().print(str(path), soft_wrap=True)


def show(trial: TrialName, workspace: Where = None, as_json: AsJson = False) -> None:
    """Everything about one trial.

    Verdict, reason, runs, what train.py reported, artifacts.

    \b
    Examples:
      autoresearch show 12
      autoresearch show champion --json
    """
    from autoresearch.values.records import to_json
    from autoresearch.views.show import find_trial, print_trial

    opened = options.open_at(workspace)
    found = find_trial(options.read_history(opened)[0], trial)
    if as_json:
        options.print_json(to_json(found))
    else:
        print_trial(options.console(), found, opened.runs_folder)


def diff(trial: TrialName, workspace: Where = None, as_json: AsJson = False) -> None:
    """What a trial changed in train.py.

    For `champion`, everything since the baseline.

    \b
    Examples:
      autoresearch diff 12
      autoresearch diff champion
    """
    from autoresearch.views.console import diff_text
    from autoresearch.views.show import find_change

    opened = options.open_at(workspace)
    old, found = find_change(options.read_history(opened)[0], trial)
    text = opened.repository.diff(old, found.commit, "train.py")
    if as_json:
        options.print_json({"trial": found.trial_id, "old": old, "new": found.commit, "diff": text})
    else:
        options.console().print(diff_text(text), soft_wrap=True)


def export(
    trial: TrialName,
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    workspace: Where = None,
    as_json: AsJson = False,
) -> None:
    """Copy a trial out of the workspace.

    train.py, measurements, output, and the weights where they are on the disk.

    \b
    Examples:
      autoresearch export champion ~/best
      autoresearch export 12 twelve
    """
    from autoresearch.views.artifacts import WEIGHTS_NAME, export_trial
    from autoresearch.views.show import find_trial

    opened = options.open_at(workspace)
    found = find_trial(options.read_history(opened)[0], trial)
    source = opened.repository.read(found.commit, "train.py")
    paths = export_trial(opened.runs_folder, found, source, folder)
    if as_json:
        options.print_json({"trial": found.trial_id, "files": paths})
        return
    console = options.console()
    console.print(f"trial {found.trial_id}: {len(paths)} files in {folder}", soft_wrap=True)
    if not any(path.name == WEIGHTS_NAME for path in paths):
        console.print(
            "no weights: only kept trials have them, until gc removes them", style="yellow"
        )


def doctor(workspace: Where = None, as_json: AsJson = False) -> None:
    """Check this machine and workspace.

    One line a check, with the command that mends what is wrong.

    \b
    Examples:
      autoresearch doctor
      autoresearch doctor --json
    """
    from rich.text import Text

    from autoresearch.doctor import run_checks

    checks = run_checks(workspace)
    if as_json:
        options.print_json([dataclasses.asdict(check) for check in checks])
    else:
        console = options.console()
        styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
        for check in checks:
            status_word = Text(f"{check.status:<6}", style=styles[check.status])
            console.print(status_word + Text(f"{check.name:<12}{check.detail}"), soft_wrap=True)
            if check.remedy:
                console.print(Text(f"{'':18}-> {check.remedy}", style="dim"), soft_wrap=True)
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)


def sample(
    workspace: Where = None,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="Text to go on from.")] = "",
    tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens to write.")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0, metavar="T", help="0: always the likeliest token.")
    ] = 0.8,
    seed: RunSeed = None,
    as_json: AsJson = False,
) -> None:
    """Let the champion write, in the sandbox.

    \b
    Examples:
      autoresearch sample --prompt "def read" --tokens 200
      autoresearch sample --temperature 0
    """
    from autoresearch import assemble
    from autoresearch.views.text import clean_lines

    opened = options.open_at(workspace)
    fresh = secrets.randbits(31) if seed is None else seed
    text = assemble.sample(opened, opened.config, prompt, tokens, temperature, fresh)
    if as_json:
        options.print_json({"prompt": prompt, "text": text})
    else:
        typer.echo("\n".join(clean_lines(text)))
