"""Everything about one trial or one run: what `show` and `train` print.

What the referee measured and what the candidate reported are kept apart, and the latter is
labelled: telemetry from train.py is shown, never believed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoresearch.search.history import History
from autoresearch.values.errors import UserError
from autoresearch.values.records import Measurement, Outcome, Trial
from autoresearch.views.console import Trimmed, key_values, verdict_text
from autoresearch.views.digest import score_trial
from autoresearch.views.text import bpb, clean, duration, plural, short, signed

_OUTCOME_STYLES = {Outcome.SCORED: "green", Outcome.CHEAT: "bold red", Outcome.DISTURBED: "yellow"}


def find_trial(history: History, name: str) -> Trial:
    """The trial called `name`: its number, the beginning of its commit, or `champion`.

    Raises:
        UserError: there is none; says what there is.
    """
    wanted = _plain(name)
    if wanted == "champion":
        if history.champion_trial_id is None:
            raise UserError(
                "the champion is the baseline, no trial was kept yet; go on with `autoresearch run`"
            )
        wanted = str(history.champion_trial_id)
    for trial in history.trials:
        if wanted == str(trial.trial_id):
            return trial
    found = [
        trial for trial in history.trials if len(wanted) >= 4 and trial.commit.startswith(wanted)
    ]
    if len(found) == 1:
        return found[0]
    there = f"1 to {history.trials[-1].trial_id}" if history.trials else "none yet"
    raise UserError(
        f"no trial {name!r}; there are {there}, `champion`, and the first 4 or more digits of a "
        "commit: `autoresearch status --all`"
    )


def find_change(history: History, name: str) -> tuple[str, Trial]:
    """The commit to compare with, and the trial called `name`, as `find_trial` finds it.

    The champion is compared with the baseline, any other with the commit that it was made from.
    """
    found = find_trial(history, name)
    return history.baseline if _plain(name) == "champion" else found.parent, found


def _plain(name: str) -> str:
    return name.strip().lower().removeprefix("#")


def print_outcome(console: Console, trial: Trial, history: History, *, is_on_disk: bool) -> None:
    """What became of a trial, in a few lines, for whoever made the edit.

    `is_on_disk`: train.py is the champion's now; it was not edited while the trial ran.
    """
    decision = trial.decision
    heading = Text(f"trial {trial.trial_id}: ", style="bold")
    console.print(heading + verdict_text(decision.verdict if decision else None), soft_wrap=True)
    if decision is not None:
        console.print(clean(decision.reason), soft_wrap=True)
    kept = f"the edit is kept: `autoresearch diff {trial.trial_id}`"
    if history.champion == trial.commit:
        line = "it is the champion now" + (", and train.py is it" if is_on_disk else "")
    elif is_on_disk:
        line = f"train.py is the champion's again ({short(history.champion)}); {kept}"
    else:
        line = kept
    console.print(line, soft_wrap=True)
    if not is_on_disk:
        console.print(
            "train.py was changed while the trial ran, so it was left as it is; for the "
            f"champion's: `git show {history.branch}:train.py > train.py`",
            soft_wrap=True,
        )


def print_trial(console: Console, trial: Trial, runs_folder: Path) -> None:
    """All that the ledger knows of a trial."""
    decision = trial.decision
    heading = Text(f"trial {trial.trial_id}  ", style="bold") + verdict_text(
        decision.verdict if decision else None
    )
    rows: list[tuple[str, Text | str]] = [
        ("change", clean(trial.description)),
        ("commit", f"{trial.commit}  (parent {short(trial.parent)})"),
        (
            "researcher",
            clean(trial.researcher) + (", a simplification" if trial.is_simplification else ""),
        ),
    ]
    if decision is not None:
        rows.append(("reason", clean(decision.reason)))
        if decision.val_bpb is not None:
            sigma = f", sigma {decision.sigma_bpb:.4f}" if decision.sigma_bpb is not None else ""
            rows.append(
                ("val_bpb", f"{bpb(decision.val_bpb)}  (gain {signed(decision.gain_bpb)}{sigma})")
            )
    if trial.parameters:
        rows.append(
            (
                "constants",
                ", ".join(f"{clean(k)} = {_value(v)}" for k, v in trial.parameters.items()),
            )
        )
    console.print(heading)
    console.print(key_values(rows))
    if not trial.runs:
        console.print("\nNo run is recorded yet.", style="dim")
        return
    console.print()
    console.print(Trimmed(_runs_table(trial)))
    for run in trial.runs:
        _print_run_details(console, run, runs_folder)


def _runs_table(trial: Trial) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in (
        "run",
        "purpose",
        "outcome",
        "val_bpb",
        "decoded",
        "seed",
        "train",
        "total",
        "memory",
        "audited",
    ):
        left = name in ("purpose", "outcome")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for run in trial.runs:
        memory = f"{run.peak_memory_mb:.0f} MB" if run.peak_memory_mb is not None else "-"
        table.add_row(
            str(run.run_id),
            run.purpose.value,
            Text(run.outcome.value, style=_OUTCOME_STYLES.get(run.outcome, "red")),
            bpb(run.val_bpb),
            bpb(run.val_bpb_decoded),
            str(run.seed),
            duration(run.training_s),
            duration(run.total_s),
            memory,
            "yes" if run.was_audited else "no",
        )
    return table


def _print_run_details(console: Console, run: Measurement, runs_folder: Path) -> None:
    rows: list[tuple[str, Text | str]] = []
    if run.reason:
        rows.append(("reason", clean(run.reason)))
    rows.append(("machine", f"{clean(run.device or '-')}, sandbox {clean(run.sandbox or 'none')}"))
    times = (("start-up", run.startup_s), ("scoring", run.scoring_s), ("budget", run.budget_s))
    rows.append(("times", ", ".join(f"{name} {duration(seconds)}" for name, seconds in times)))
    if run.weight_bytes:
        rows.append(
            (
                "weights",
                f"{run.weight_bytes / 2**20:.1f} MiB, sha256 {clean(run.weights_sha256)[:16]}",
            )
        )
    figures = (("audit", run.audit), ("hardware", run.hardware), ("early stop", run.early_stop))
    for name, values in figures:
        if values:
            rows.append((name, _pairs(values)))
    if run.reported:
        telemetry = Text(f"by train.py, not verified: {_pairs(run.reported)}", style="dim")
        rows.append(("reported", telemetry))
    if run.artifacts:
        rows.append(("artifacts", clean(runs_folder / run.artifacts)))
    console.print(Text(f"\nrun {run.run_id}", style="bold"))
    console.print(key_values(rows))


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{clean(key, 60)} {_value(value)}" for key, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return clean(value, 200)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def summary_block(run: Measurement) -> str:
    """`---` and one `key: value` line each, for people and for grep.

    A line is left out where there is no figure: no val_bpb without a score. The last five keys are
    what train.py reported.
    """
    reported = run.reported
    lines = [
        ("val_bpb", run.val_bpb if run.is_scored else None, ".6f"),
        ("training_seconds", run.training_s, ".1f"),
        ("total_seconds", run.total_s, ".1f"),
        ("peak_vram_mb", run.peak_memory_mb, ".1f"),
        ("mfu_percent", _number(reported, "mfu_percent"), ".2f"),
        ("total_tokens_M", _millions(reported, "total_tokens_M", "tokens"), ".1f"),
        ("num_steps", _number(reported, "num_steps", "step"), ".0f"),
        ("num_params_M", _millions(reported, "num_params_M", "num_params"), ".2f"),
        ("depth", _number(reported, "depth"), ".0f"),
    ]
    text = [f"{name + ':':<18}{value:{form}}" for name, value, form in lines if value is not None]
    return "\n".join(["---", *text])


def _number(reported: dict[str, Any], *names: str) -> float | None:
    for name in names:
        value = reported.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return None


def _millions(reported: dict[str, Any], in_millions: str, plain: str) -> float | None:
    value = _number(reported, plain)
    return _number(reported, in_millions) if value is None else value / 1e6


def print_run(console: Console, run: Measurement, runs_folder: Path) -> None:
    """The result of a single run: its reason where it has no score, then the summary block."""
    if run.outcome is not Outcome.SCORED:
        style = _OUTCOME_STYLES.get(run.outcome, "red")
        console.print(
            Text(f"{run.outcome.value}: ", style=style)
            + Text(clean(run.reason) or "no reason given"),
            soft_wrap=True,
        )
    if run.unverified:
        console.print(Text(f"unverified: {clean(run.unverified)}", style="yellow"), soft_wrap=True)
    where = clean(runs_folder / run.artifacts)
    console.print(Text(f"run {run.run_id}, artifacts in {where}", style="dim"), soft_wrap=True)
    console.print(summary_block(run), soft_wrap=True)


def compare_runs(old: Trial, history: History, new: Measurement) -> str:
    """One sentence on a replay: the new run beside what `status` says of the trial."""
    before = score_trial(old, history)
    if not new.is_scored or new.val_bpb is None:
        why = f"{new.outcome.value}: {clean(new.reason)}"
        return f"The replay of trial {old.trial_id} gave no score, {why}"
    if before is None:
        return f"Trial {old.trial_id} had no score; its replay scored {bpb(new.val_bpb)}."
    spread = f", {bpb(before.low_bpb)} to {bpb(before.high_bpb)}" if before.num_runs > 1 else ""
    had = f"{bpb(before.mean_bpb)} ({plural(before.num_runs, 'run')}{spread})"
    gain = signed(before.mean_bpb - new.val_bpb)
    return f"Trial {old.trial_id} had {had}; its replay scored {bpb(new.val_bpb)}, gain {gain}."
