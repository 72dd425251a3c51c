"""The command line. Each command opens what it needs, calls one function, prints the result.

`work` holds the commands that make and run sessions, `tries` those for one train.py, `claims` the
one that checks a champion, `contest` the arena, `bring` the import, `look` those that only show,
`mcp_server` the one for agents, `options` what they share. Everything heavy is imported inside the
commands, so that `autoresearch --help` answers at once. Exit codes: 0 ok, 1 failed, 2 usage or
configuration, 3 trust violation, 130 interrupted. With --json, standard output holds one JSON
document and nothing else; progress goes to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from autoresearch.cli import bring, claims, contest, look, tries, work
from autoresearch.cli.mcp_server import mcp
from autoresearch.values.errors import AutoresearchError

_ABOUT = """Machine-learning research while its owner sleeps: edit, train, score, keep or revert.

\b
Start:
  autoresearch init my-research && cd my-research
  autoresearch prepare
  autoresearch run
"""

app = typer.Typer(
    name="autoresearch",
    help=_ABOUT,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help takes half the time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: tuple[Callable[..., None], ...] = (
    *(work.demo, work.init, work.prepare, work.run, tries.train, tries.replay, claims.confirm),
    *(look.sample, look.status, look.verify, look.report, look.show, look.diff, look.export),
    *(work.gc, look.doctor, mcp, contest.arena),
)
for _command in _COMMANDS:
    app.command()(_command)
app.command(name="import")(bring.import_file)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from autoresearch import __version__

        typer.echo(f"autoresearch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; an error raised on purpose becomes one message and its exit code."""
    try:
        app(prog_name="autoresearch")
    except AutoresearchError as error:
        typer.echo(f"autoresearch: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
