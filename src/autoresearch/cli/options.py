"""What the commands share: options, opening a workspace, settings from the command line."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from autoresearch.values.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from autoresearch.search.history import History
    from autoresearch.search.noise import Noise
    from autoresearch.workspace import Workspace

Where: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        "-w",
        metavar="PATH",
        help="The workspace. [default: current folder or above]",
    ),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
TrialName: TypeAlias = Annotated[
    str,
    typer.Argument(metavar="ID", help="Number of a trial, digits of its commit, or `champion`."),
]
Budget: TypeAlias = Annotated[
    float | None, typer.Option(min=0.5, metavar="S", help="Seconds that a candidate may train.")
]
CorpusName: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="climbmix, fineweb-edu, tinystories, files or pystdlib."),
]
TextFolder: TypeAlias = Annotated[
    Path | None,
    typer.Option("--path", metavar="FOLDER", help="Folder with the text of the corpus `files`."),
]
RunSeed: TypeAlias = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Seed of the run. [default: a fresh one]")
]

Tables: TypeAlias = dict[str, dict[str, Any]]


def open_at(path: Path | None) -> Workspace:
    """The workspace that a command works on."""
    from autoresearch.workspace import open_workspace

    return open_workspace(path)


def read_history(workspace: Workspace) -> tuple[History, Noise]:
    """What the ledger says of the configured session, also while that runs; and the noise."""
    from autoresearch.search.ledger import Ledger
    from autoresearch.views.digest import find_noise

    with Ledger.read(workspace.ledger_path) as ledger:
        history = ledger.history(f"autoresearch/{workspace.config.session.tag}")
    return history, find_noise(history, workspace.config)


def given(**tables: dict[str, Any]) -> Tables:
    """The settings that were given: None means that an option was not used."""
    found = {
        table: {k: v for k, v in values.items() if v is not None}
        for table, values in tables.items()
    }
    return {table: values for table, values in found.items() if values}


def change(workspace: Workspace, changes: Tables) -> Workspace:
    """The workspace with settings from the command line, checked as the file's are.

    Raises:
        UserError: a value that autoresearch.toml would refuse.
    """
    from autoresearch.values.config import override, parse_config
    from autoresearch.workspace import to_toml

    lines = []
    for table, values in changes.items():
        lines += [f"[{table}]", *(f"{key} = {to_toml(value)}" for key, value in values.items())]
    parse_config("\n".join(lines), "the command line")
    return dataclasses.replace(workspace, config=override(workspace.config, **changes))


def save(workspace: Workspace, changes: Tables) -> None:
    """Write settings into autoresearch.toml; comments and all other lines stay.

    Raises:
        UserError: the file is not laid out as `init` does it, so that the lines are not found.
    """
    from autoresearch.system.files import write_atomic
    from autoresearch.values.config import parse_config
    from autoresearch.workspace import CONFIG_NAME

    path = workspace.root / CONFIG_NAME
    text = path.read_text(encoding="utf-8")
    for table, values in changes.items():
        for key, value in values.items():
            text = _set_line(text, table, key, json.dumps(value))
    if parse_config(text, CONFIG_NAME) != workspace.config:
        wanted = ", ".join(
            f"{t}.{k} = {v!r}" for t, values in changes.items() for k, v in values.items()
        )
        raise UserError(f"could not change {path}; write {wanted} there by hand")
    write_atomic(path, text)


def _set_line(text: str, table: str, key: str, value: str) -> str:
    head, found, body = text.partition(f"[{table}]\n")
    end = re.search(r"^\[", body, re.MULTILINE)
    mine, rest = (body[: end.start()], body[end.start() :]) if end else (body, "")
    pattern = rf"^{re.escape(key)}\s*=\s*(\"(?:[^\"\\]|\\.)*\"|[^#\n]*?)(?=\s*(#|$))"
    return (
        head
        + found
        + re.sub(pattern, lambda _: f"{key} = {value}", mine, count=1, flags=re.MULTILINE)
        + rest
    )


def program() -> str:
    """What to type for this program, from any folder: its name only where the PATH leads to it."""
    running = Path(sys.argv[0])
    if running.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m autoresearch"
    found = shutil.which(running.name)
    if not running.exists() or (found and running.samefile(found)):
        return running.name
    return shlex.quote(str(running.absolute()))


def console(*, to_stderr: bool = False) -> Console:
    """Where a command prints."""
    from autoresearch.views.console import make_console

    return make_console(to_stderr=to_stderr)


def print_json(value: Any) -> None:
    """The one JSON document of a command."""
    from autoresearch.views import console as views

    views.print_json(value)


def print_status(
    workspace: Workspace, *, last: int, as_json: bool, report: list[Path] | None = None
) -> None:
    """The status, with the paths of a report that was just written."""
    from autoresearch.views.console import print_status, status_json

    history, noise = read_history(workspace)
    if as_json:
        facts = status_json(history, noise, workspace.config, last)
        print_json(facts | ({"report": report} if report else {}))
        return
    out = console()
    print_status(out, history, noise, workspace.config, last)
    if report:
        out.print()
        for path in report:
            out.print(str(path), soft_wrap=True)
