"""What `status` and `diff` print, and the console that every command prints through.

Nothing here parses markup: text is built from `rich.text.Text` pieces with explicit styles, so that
a description with brackets in it stays a description.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from autoresearch.search.early_stop import count_false_kills
from autoresearch.search.history import History
from autoresearch.search.noise import Noise
from autoresearch.values.config import Config
from autoresearch.values.records import Confirmation, Trial, Verdict, to_json
from autoresearch.views.digest import Digest, early_stop_words, measure, score_trial, verdict_of
from autoresearch.views.text import (
    bpb,
    clean,
    clean_lines,
    count_verdicts,
    duration,
    percent,
    plural,
    short,
    signed,
)

_FIGURES_WIDTH = 50  # columns of the table before the change, at their widest

VERDICT_STYLES = {
    Verdict.KEEP: "bold green",
    Verdict.NEAR_MISS: "yellow",
    Verdict.DISCARD: "dim",
    Verdict.CRASH: "red",
    Verdict.TIMEOUT: "red",
    Verdict.CHEAT: "bold red",
    Verdict.INTERRUPTED: "magenta",
    Verdict.CONFIRMED: "bold green",
    Verdict.UNCONFIRMED: "yellow",
}


def make_console(*, to_stderr: bool = False) -> Console:
    """A console without markup; 120 columns where the output is not a terminal."""
    stream = sys.stderr if to_stderr else sys.stdout
    width = None if stream.isatty() else 120
    return Console(
        stderr=to_stderr, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False
    )


def print_json(value: Any) -> None:
    """One JSON document on standard output; numbers that JSON lacks become null."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, default=str) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class Trimmed:
    """A table whose lines end where their text ends; rich alone pads them all to one width."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As rich asks."""
        for line in console.render_lines(self.table, options, pad=False):
            while line and not line[-1].text.strip():
                line.pop()
            if line:
                yield from line[:-1]
                yield Segment(line[-1].text.rstrip(), line[-1].style)
            yield Segment.line()


def key_values(rows: Sequence[tuple[str, Text | str]]) -> Trimmed:
    """Two columns without lines: a dim name, its value."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value if isinstance(value, Text) else Text(value))
    return Trimmed(table)


def verdict_text(verdict: Verdict | None) -> Text:
    """A verdict in its colour; `running` for a trial in hand."""
    if verdict is None:
        return Text("running", style="cyan")
    return Text(verdict.value.replace("_", " "), style=VERDICT_STYLES[verdict])


def status_json(history: History, noise: Noise, config: Config, last: int) -> dict[str, Any]:
    """The figures of `status` as plain values."""
    digest = measure(history, noise)
    trials = history.trials[-last:] if last else history.trials
    return {
        "tag": config.session.tag,
        "baseline": {
            "commit": history.baseline,
            "val_bpb": _mean(digest.baseline),
            "runs": _runs(digest.baseline),
        },
        "champion": {
            "commit": history.champion,
            "trial": history.champion_trial_id,
            "val_bpb": _mean(digest.champion),
            "runs": _runs(digest.champion),
        },
        "gain_bpb": digest.gain_bpb,
        "gain_error_bpb": digest.gain_error_bpb,
        "kept_gain_bpb": digest.kept_gain_bpb,
        "kept_gain_error_bpb": digest.kept_gain_error_bpb,
        "sigma_bpb": digest.sigma_bpb,
        "confirmations": [confirmation_json(each) for each in history.confirmations],
        "trials": digest.num_closed,
        "verdicts": {verdict.value: count for verdict, count in digest.counts.items()},
        "runs": digest.num_runs,
        "early_stop": to_json(count_false_kills(history)),
        "trials_per_hour": digest.trials_per_hour,
        "active_s": digest.active_s,
        "last_trials": [trial_json(trial, history) for trial in trials],
    }


def confirmation_json(confirmation: Confirmation) -> dict[str, Any]:
    """One confirmation as plain values; the verdict is None while it is in hand."""
    decision = confirmation.decision
    return {
        "number": confirmation.number,
        "champion": confirmation.champion,
        "reference": confirmation.reference,
        "trial": confirmation.trial_id,
        "verdict": decision.verdict.value if decision else None,
        "gain_bpb": decision.gain_bpb if decision else None,
        "asked_holdout": confirmation.asked_holdout,
        "runs": len(confirmation.runs),
        "reason": clean(decision.reason) if decision else "",
    }


def trial_json(trial: Trial, history: History) -> dict[str, Any]:
    """One line of the table as plain values."""
    score, decision = score_trial(trial, history), trial.decision
    return {
        "trial": trial.trial_id,
        "commit": trial.commit,
        "verdict": decision.verdict.value if decision else None,
        "val_bpb": _mean(score),
        "gain_bpb": decision.gain_bpb if decision else None,
        "runs": len(trial.runs),
        "description": clean(trial.description),
        "reason": clean(decision.reason) if decision else "",
    }


def _mean(score: Any) -> float | None:
    return score.mean_bpb if score else None


def _runs(score: Any) -> int:
    return score.num_runs if score else 0


def print_status(
    console: Console, history: History, noise: Noise, config: Config, last: int
) -> None:
    """Champion, baseline, gain, counts, pace, and the last trials (0: all)."""
    digest = measure(history, noise)
    console.print(key_values(_status_rows(history, digest, config)))
    trials = history.trials[-last:] if last else history.trials
    if trials:
        console.print()
        console.print(trials_table(trials, history, console.width))
    else:
        console.print("\nNo trials yet; start with: autoresearch run", style="dim")


def _status_rows(history: History, digest: Digest, config: Config) -> list[tuple[str, Text | str]]:
    rows: list[tuple[str, Text | str]] = [
        ("session", Text(clean(config.session.tag), style="bold"))
    ]
    if digest.baseline is None:
        return [*rows, ("baseline", "not measured yet")]
    noise = f", sigma {digest.sigma_bpb:.4f}" if digest.sigma_bpb is not None else ""
    score, runs = bpb(digest.baseline.mean_bpb), plural(digest.baseline.num_runs, "run")
    rows.append(("baseline", f"{short(history.baseline)}  val_bpb {score}  ({runs}{noise})"))
    if history.champion == history.baseline or digest.champion is None or digest.gain_bpb is None:
        rows.append(("champion", "the baseline; nothing was kept yet"))
    else:
        score, runs = bpb(digest.champion.mean_bpb), plural(digest.champion.num_runs, "run")
        where = f"trial {history.champion_trial_id}, {runs}"
        rows.append(
            (
                "champion",
                Text(f"{short(history.champion)}  val_bpb {score}  ({where})", style="bold green"),
            )
        )
        more = f", standard error {digest.gain_error_bpb:.4f}" if digest.gain_error_bpb else ""
        if digest.kept_gain_bpb is not None:
            more = f"; {signed(digest.kept_gain_bpb)} side by side, at each keep"
        share = percent(digest.gain_bpb, digest.baseline.mean_bpb)
        rows.append(("gain", f"{signed(digest.gain_bpb)}  ({share}{more})"))
    rows += [
        (decision.verdict.value, clean(decision.reason))
        for confirmation in history.confirmations[-1:]
        if (decision := confirmation.decision) is not None
    ]
    counts = f": {count_verdicts(digest.counts)}" if digest.counts else ""
    rows.append(("trials", f"{digest.num_closed}{counts}"))
    if stops := early_stop_words(history):
        rows.append(("early stop", stops))
    if digest.trials_per_hour:
        pace = f"{digest.trials_per_hour:.1f} trials an hour, {plural(digest.num_runs, 'run')}"
        rows.append(("pace", f"{pace} in {duration(digest.active_s)}"))
    return rows


def trials_table(trials: Sequence[Trial], history: History, width: int) -> Trimmed:
    """One row a trial; the change takes what `width` leaves to it."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("trial", "verdict", "val_bpb", "gain", "runs"):
        table.add_column(name, justify="left" if name == "verdict" else "right", no_wrap=True)
    table.add_column("change", no_wrap=True)
    room = max(width - _FIGURES_WIDTH, 20)
    for trial in trials:
        score, decision = score_trial(trial, history), trial.decision
        table.add_row(
            str(trial.trial_id),
            verdict_text(verdict_of(trial)),
            bpb(score.mean_bpb if score else None),
            signed(decision.gain_bpb if decision else None),
            str(len(trial.runs)),
            Text(clean(trial.description, room)),
        )
    return Trimmed(table)


def diff_text(diff: str) -> Text:
    """A unified diff in colours."""
    text = Text()
    for line in clean_lines(diff):
        if line.startswith(("+++", "---", "diff ", "index ")):
            style = "bold"
        elif line.startswith("@@"):
            style = "cyan"
        else:
            style = {"+": "green", "-": "red"}.get(line[:1], "")
        text.append(line + "\n", style=style)
    text.rstrip()
    return text
