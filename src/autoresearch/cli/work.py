"""Commands that change something: they make workspaces and data, and run candidates."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoresearch.cli import options
from autoresearch.cli.options import (
    AsJson,
    Budget,
    CorpusName,
    TextFolder,
    Where,
)

if TYPE_CHECKING:
    from autoresearch.workspace import Workspace

Trials = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Stop at so many trials; 0: never.")
]


def init(
    path: Annotated[Path, typer.Argument(help="A new or empty folder.")] = Path(),
    preset: Annotated[
        str, typer.Option(metavar="NAME", help="auto, demo, laptop, h100, ...")
    ] = "auto",
    corpus: CorpusName = None,
    text: TextFolder = None,
    budget: Budget = None,
    as_json: AsJson = False,
) -> None:
    """Make a workspace.

    It is a git repository of its own, with train.py, program.md and all settings.

    \b
    Examples:
      autoresearch init my-research
      autoresearch init my-research --preset demo
      autoresearch init mine --corpus files --path ~/texts --budget 60
    """
    from autoresearch import workspace as workspaces

    made = workspaces.init(
        path, preset, _text_settings(corpus, text) | options.given(trial={"budget_s": budget})
    )
    if as_json:
        options.print_json({"workspace": made.root, "preset": made.config.preset})
        return
    console = options.console()
    console.print(f"{made.root}: a workspace with preset {made.config.preset}", soft_wrap=True)
    name = options.program()
    console.print(
        f"next: cd {shlex.quote(str(path))} && {name} prepare && {name} run", soft_wrap=True
    )


def _text_settings(
    corpus: str | None, text: Path | None, num_shards: int | None = None
) -> options.Tables:
    folder = str(text.expanduser().resolve()) if text else None
    name = corpus or ("files" if text else None)
    return options.given(data={"corpus": name, "path": folder, "num_shards": num_shards})


def prepare(
    workspace: Where = None,
    num_shards: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Training shards to download.")
    ] = None,
    corpus: CorpusName = None,
    text: TextFolder = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Check every byte, make again what is damaged.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Get the data ready.

    Gets the text, trains the tokenizer, packs the rows. Choices made here are written to
    autoresearch.toml.

    \b
    Examples:
      autoresearch prepare
      autoresearch prepare --num-shards 50
      autoresearch prepare --corpus files --path ~/texts
      autoresearch prepare --repair
    """
    opened = options.open_at(workspace)
    changes = _text_settings(corpus, text, num_shards)
    changed = options.change(opened, changes)
    _prepare(changed, is_repair=repair, as_json=as_json)
    if changed.config != opened.config:
        options.save(changed, changes)


def _prepare(workspace: Workspace, *, is_repair: bool, as_json: bool) -> None:
    from autoresearch.data import dataset
    from autoresearch.system.files import cache_home
    from autoresearch.views.live import Steps

    console = options.console(to_stderr=as_json)
    with Steps(console) as steps:
        made = dataset.prepare(workspace.config.data, cache_home(), steps, repair=is_repair)
    facts = {
        "corpus": workspace.config.data.corpus,
        "vocabulary": made.vocab_size,
        "context": made.context,
        "training_rows": made.num_train_rows,
        "validation_rows": made.num_validation_rows,
        "folder": made.folder,
    }
    if as_json:
        options.print_json(facts)
        return
    for name, value in facts.items():
        console.print(f"{name.replace('_', ' '):<17}{value}", soft_wrap=True)


def run(
    workspace: Where = None,
    max_trials: Trials = None,
    max_hours: Annotated[
        float | None, typer.Option(min=0, metavar="H", help="Stop after H hours; 0: never.")
    ] = None,
    target: Annotated[
        float | None, typer.Option(min=0, metavar="BPB", help="Stop at this val_bpb or less.")
    ] = None,
    budget: Budget = None,
    researcher: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="tpe, cmaes, random, scripted, agent, llm or hybrid."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Seed of the researcher's own draws.")
    ] = None,
    tag: Annotated[
        str | None, typer.Option(metavar="TAG", help="Work on branch autoresearch/TAG.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="NAME", help="greedy, screen or confirm-all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Research until stopped.

    Each trial: propose, train, score, keep or revert.

    Ends by a stop rule or by Ctrl-C: once finishes the trial in hand, twice stops at once. Started
    again, it goes on.

    \b
    Examples:
      autoresearch run --max-trials 20
      autoresearch run --max-hours 8 --policy screen
      autoresearch run --researcher random --seed 1 --tag random1
    """
    changes = options.given(
        session={
            "max_trials": max_trials,
            "max_hours": max_hours,
            "target_bpb": target,
            "tag": tag,
        },
        trial={"budget_s": budget},
        researcher={"kind": researcher, "seed": seed},
        judge={"policy": policy},
    )
    _run(options.change(options.open_at(workspace), changes), as_json=as_json)


def _run(workspace: Workspace, *, as_json: bool) -> None:
    """Run a session; whatever ends it, write the report and print the status of what there is."""
    from autoresearch.assemble import open_session
    from autoresearch.values.errors import Interrupted
    from autoresearch.views.live import LiveView
    from autoresearch.views.report import write_report

    interrupted: Interrupted | None = None
    with (
        LiveView(options.console(to_stderr=as_json), workspace.config) as view,
        open_session(workspace, workspace.config, view) as session,
    ):
        try:
            session.run()
        except Interrupted as error:
            interrupted = error
    history, noise = options.read_history(workspace)
    paths = write_report(workspace.root, history, noise, workspace.config)
    options.print_status(workspace, last=20, as_json=as_json, report=paths)
    if interrupted is not None:
        raise interrupted


def gc(
    workspace: Where = None,
    cap: Annotated[
        float | None, typer.Option(min=0, metavar="GIB", help="[default: artifacts.disk_cap_gb]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove old weights beyond the disk cap.

    The oldest go first, the champion's never.

    \b
    Examples:
      autoresearch gc
      autoresearch gc --cap 5
    """
    from autoresearch.assemble import collect_garbage

    opened = options.change(
        options.open_at(workspace), options.given(artifacts={"disk_cap_gb": cap})
    )
    num_bytes = collect_garbage(opened, opened.config)
    if as_json:
        options.print_json({"freed_bytes": num_bytes})
    else:
        options.console().print(f"freed {num_bytes / 2**20:.1f} MiB")


def demo(
    path: Annotated[
        Path, typer.Argument(help="Where: a new folder, or a workspace to go on in.")
    ] = Path("autoresearch-demo"),
    max_trials: Trials = 10,
    budget: Budget = None,
    preset: Annotated[str, typer.Option(metavar="NAME", help="Starting values.")] = "demo",
    as_json: AsJson = False,
) -> None:
    """The main job in one command.

    Makes a workspace, prepares its data, calibrates, runs trials, shows what came out.

    \b
    Examples:
      autoresearch demo
      autoresearch demo my-demo --max-trials 30
    """
    from autoresearch import workspace as workspaces

    console = options.console(to_stderr=as_json)
    if (path / workspaces.CONFIG_NAME).is_file():
        made = workspaces.open_workspace(path)
    else:
        made = workspaces.init(path, preset, options.given(trial={"budget_s": budget}))
    console.print(
        f"{made.root}: {workspaces.load_preset(made.config.preset).about}", soft_wrap=True
    )
    opened = options.change(
        made, options.given(session={"max_trials": max_trials}, trial={"budget_s": budget})
    )
    _prepare_quietly(opened, as_json=as_json)
    _run(opened, as_json=as_json)
    if not as_json:
        more = f"{options.program()} run --max-trials {2 * (max_trials or 20)}"
        console.print(f"\ngo on: cd {shlex.quote(str(path))} && {more}", soft_wrap=True)


def _prepare_quietly(workspace: Workspace, *, as_json: bool) -> None:
    """As `prepare`, with progress but without its table."""
    from autoresearch.data import dataset
    from autoresearch.system.files import cache_home
    from autoresearch.views.live import Steps

    with Steps(options.console(to_stderr=as_json)) as steps:
        dataset.prepare(workspace.config.data, cache_home(), steps)
