"""A session as it happens: an observer that prints one line for each event.

On a terminal the run in hand has a progress line below (elapsed of budget, step and loss as
train.py reports them); elsewhere there are only the lines, flushed at once, so that a log file can
be followed.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.text import Text

from autoresearch.search.history import History
from autoresearch.values.config import Config
from autoresearch.values.records import Measurement, Outcome, Purpose, Trial, Verdict
from autoresearch.views.console import VERDICT_STYLES
from autoresearch.views.digest import find_champion, find_noise, measure
from autoresearch.views.text import (
    bpb,
    clean,
    count_verdicts,
    duration,
    percent,
    plural,
    short,
    signed,
)

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_WEAKER_WALLS = {
    "landlock": "sandbox landlock has no namespaces: names of files outside show, disk use has no "
    "limit",
    "none": "no sandbox: train.py can do whatever you can",
}


def _clock() -> str:
    return datetime.datetime.now().astimezone().strftime("%H:%M:%S")


class LiveView:
    """The session's observer for a person; as a context manager it cleans its line away."""

    def __init__(
        self, console: Console, config: Config, *, clock: Callable[[], str] = _clock
    ) -> None:
        self._console = console
        self._config = config
        self._clock = clock
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._trial = ""  # the trial in hand, for the progress line
        self._why = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress = _make_run_progress(self._console)
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_run()
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def session_started(self, history: History) -> None:
        """The loop begins, or goes on."""
        config = self._config
        host = history.sessions[-1].host if history.sessions else {}
        facts = [
            f"session {clean(config.session.tag)}",
            f"researcher {clean(config.researcher.kind)}",
        ]
        facts += [f"policy {config.judge.policy}", f"budget {duration(config.trial.budget_s)}"]
        facts += [
            f"{name} {clean(host[name], 60)}" for name in ("device", "sandbox") if name in host
        ]
        if history.trials:
            facts.append(f"going on after {plural(len(history.trials), 'trial')}")
        self._say(Text(", ".join(facts), style="bold"))
        if warning := _WEAKER_WALLS.get(host.get("sandbox", "")):
            self._say(Text(f"{warning}; see `autoresearch doctor`", style="yellow"))

    def run_started(self, purpose: Purpose, why: str) -> None:
        """A run begins: it gets the progress line."""
        self._end_run()
        is_of_a_trial = purpose not in (Purpose.CALIBRATE, Purpose.CONFIRM)
        self._why = purpose.value if is_of_a_trial else clean(why, 60)
        if self._progress is not None:
            label = f"{self._trial} {self._why}".strip() if is_of_a_trial else self._why
            self._task = self._progress.add_task(
                label, total=self._config.trial.budget_s, times="starting", words=""
            )

    def progress(self, elapsed_s: float, telemetry: dict[str, Any]) -> None:
        """The candidate reported something: shown, not believed."""
        if self._progress is None or self._task is None:
            return
        budget_s = self._config.trial.budget_s
        words = "  ".join(
            f"{name} {_figure(telemetry[name])}" for name in ("step", "loss") if name in telemetry
        )
        times = f"{elapsed_s:.0f}/{budget_s:.0f} s" if elapsed_s <= budget_s else "scoring"
        self._progress.update(
            self._task, completed=min(elapsed_s, budget_s), times=times, words=words
        )

    def watch(self, elapsed_s: float, telemetry: dict[str, Any]) -> str:
        """As `progress`, for a referee without a session; never asks for a stop."""
        self.progress(elapsed_s, telemetry)
        return ""

    def run_finished(self, measurement: Measurement) -> None:
        """A run ended."""
        self._end_run()
        line = Text(f"  {self._why or measurement.purpose.value}  ")
        if measurement.outcome is Outcome.SCORED:
            line.append(bpb(measurement.val_bpb))
        else:
            line.append(
                f"{measurement.outcome.value}: {clean(measurement.reason, 200)}", style="red"
            )
        trained, total = duration(measurement.training_s), duration(measurement.total_s)
        self._say(line.append(f"  trained {trained} of {total} in all", style="dim"))

    def trial_started(self, trial: Trial) -> None:
        """A proposal was committed."""
        self._trial = f"trial {trial.trial_id}"
        self._say(Text(f"{self._trial}  ", style="bold") + Text(clean(trial.description, 160)))

    def trial_closed(self, trial: Trial, history: History) -> None:
        """A verdict fell; a new champion gets a line of its own."""
        self._trial = ""
        decision = trial.decision
        if decision is None:
            return
        line = Text(f"trial {trial.trial_id}  ", style="bold")
        line.append(
            decision.verdict.value.replace("_", " "), style=VERDICT_STYLES[decision.verdict]
        )
        if decision.gain_bpb is not None and math.isfinite(decision.gain_bpb):
            line.append(f"  gain {signed(decision.gain_bpb)}")
        self._say(line.append(f"  {clean(decision.reason, 240)}", style="dim"))
        if decision.verdict is Verdict.KEEP:
            score = find_champion(history)
            value = bpb(score.mean_bpb if score else None)
            self._say(
                Text(
                    f"champion  {short(trial.commit)}, trial {trial.trial_id}, val_bpb {value}",
                    "bold green",
                )
            )

    def note(self, text: str) -> None:
        """Something that a person should know."""
        self._say(Text("note: ", style="yellow") + Text(clean(text, 400)))

    def session_stopped(self, reason: str, history: History) -> None:
        """The loop ended: why, and what it got."""
        self._end_run()
        digest = measure(history, find_noise(history, self._config))
        facts = [clean(reason, 300)]
        if digest.counts:
            facts.append(count_verdicts(digest.counts))
        if digest.baseline and digest.gain_bpb is not None:
            share = percent(digest.gain_bpb, digest.baseline.mean_bpb)
            facts.append(f"gain {signed(digest.gain_bpb)} ({share})")
        self._say(Text("stopped: ", style="bold") + Text("; ".join(facts)))

    def _say(self, line: Text) -> None:
        self._console.print(Text(self._clock() + "  ", style="dim") + line, soft_wrap=True)

    def _end_run(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task)
            self._progress.refresh()
        self._task = None


def _make_run_progress(console: Console) -> Progress:
    """One line: what runs, bar, elapsed of budget, what train.py reports."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[times]}", markup=False),
        TextColumn("{task.fields[words]}", style="dim", markup=False),
        console=console,
        transient=True,
    )


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else clean(value, 20)


class Steps:
    """Progress of a long step outside a session: called with a stage, and done of total."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` (0: unknown) of a stage; without a terminal one line a stage."""
        stage = clean(stage, 120)
        if self._progress is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._progress.add_task(stage, total=total or None)
            self._progress.update(self._tasks[stage], completed=done, total=total or None)
        elif stage != self._last:
            self._console.print(Text(stage), soft_wrap=True)
        self._last = stage
