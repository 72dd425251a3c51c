"""The command `arena`: researchers head to head."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoresearch.cli import options
from autoresearch.cli.options import AsJson, Budget
from autoresearch.values.errors import UserError

if TYPE_CHECKING:
    from autoresearch.arena_rules import Rules

Researchers = Annotated[
    list[str] | None,
    typer.Option("--researcher", "-r", metavar="KIND", help="One of them; give it again."),
]
Jobs = Annotated[int, typer.Option(min=1, metavar="N", help="Sessions at once, one a core.")]
Minutes = Annotated[
    float, typer.Option(min=0, metavar="M", help="Pause after so long; 0: go on to the end.")
]
Tables = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Tables for every autoresearch.toml.")
]


def arena(
    folder: Annotated[Path, typer.Argument(help="Where: a new folder, or an arena to go on in.")],
    researcher: Researchers = None,
    trials: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Budget of each session. [default: 30]")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(min=0, metavar="H", help="Budget in hours instead.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Sessions of each. [default: 5]")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Fresh pairs at the end. [default: 4]")
    ] = None,
    jobs: Jobs = 1,
    minutes: Minutes = 0.0,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Starting values. [default: demo]")
    ] = None,
    budget: Budget = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Of the first repeat's researchers.")
    ] = None,
    config: Tables = None,
    as_json: AsJson = False,
) -> None:
    """Researchers head to head.

    Equal budgets from one baseline, several repeats; then every champion against the baseline in
    fresh pairs. Called again in its folder it goes on where it was. Writes arena.md, arena.png and
    results.json there.

    \b
    Examples:
      autoresearch arena duel -r random -r tpe --trials 30 --repeats 5
      autoresearch arena duel --jobs 20 --minutes 8
    """
    from autoresearch import arena as play
    from autoresearch.views.live import Steps

    tables = _tables(config, budget)
    given: dict[str, Any] = {
        "researchers": list(researcher) if researcher else None,
        "trials": trials,
        "hours": hours,
        "repeats": repeats,
        "rounds": rounds,
        "preset": preset,
        "seed": seed,
        "tables": tables or None,
    }
    rules = _open_rules(folder, given)
    console = options.console(to_stderr=True)
    with Steps(console) as steps:
        names = play.prepare(folder, rules, steps)
    _require_cpu(folder / names[0], jobs)

    def report(line: str) -> None:
        console.print(line, soft_wrap=True)

    is_done, problems = play.play(folder, rules, jobs=jobs, minutes=minutes, report=report)
    text, facts = play.write_results(folder, rules, names, problems, is_done=is_done)
    if as_json:
        options.print_json(facts)
    else:
        typer.echo(text)
        if not is_done and not problems:
            console.print(f"not over yet; go on: autoresearch arena {folder}", soft_wrap=True)
    if problems:
        raise typer.Exit(1)


def _open_rules(folder: Path, given: dict[str, Any]) -> Rules:
    """The arena's rules with the options that were given on top."""
    from autoresearch.arena_rules import open_rules

    return open_rules(folder, {k: v for k, v in given.items() if v is not None})


def _tables(config: Path | None, budget: float | None) -> dict[str, dict[str, Any]]:
    """Settings of every workspace: a file's tables, with --budget on top."""
    import tomllib

    from autoresearch.arena_rules import problem_of_tables

    try:
        tables = tomllib.loads(config.read_text(encoding="utf-8")) if config else {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{config} cannot be read as TOML tables: {error}; mend it") from error
    if problem := problem_of_tables(tables):
        raise UserError(f"{config}: {problem}; mend it and run the command again")
    if budget is not None:
        tables["trial"] = {**tables.get("trial", {}), "budget_s": budget}
    return tables


def _require_cpu(workspace: Path, jobs: int) -> None:
    from autoresearch.system.hardware import pick_device

    device = pick_device(options.open_at(workspace).config.trial.device)
    if jobs > 1 and device != "cpu":
        raise UserError(f"--jobs {jobs}: sessions on one {device} disturb each other; use --jobs 1")
