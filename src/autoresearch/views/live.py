"""A session as it happens: an observer that prints one line for each event.

On a terminal the run in hand has a progress line below (elapsed of budget, step and loss as train.py reports them);
elsewhere there are only the lines, flushed at once, so that a log file can be followed.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.text import Text

from autoresearch.values.records import Measurement, Outcome, Purpose, Trial, Verdict
from autoresearch.views.console import VERDICT_STYLES
from autoresearch.views.text import bpb, clean, duration, plural, short, signed

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from autoresearch.values.config import Config


def _clock() -> str:
    return datetime.datetime.now().astimezone().strftime("%H:%M:%S")


class LiveView:
    """Implements the session's observer. Use as a context manager, so that the progress line is taken away."""

    def __init__(self, console: Console, *, clock: Callable[[], str] = _clock) -> None:
        self._console = console
        self._clock = clock
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._label = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress = _make_progress(self._console)
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_run()
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def session_started(self, config: Config, device: str, sandbox: str, num_trials: int = 0) -> None:
        """The session is open; `num_trials` came from earlier."""
        parts = [
            f"session {clean(config.session.tag)}",
            f"researcher {clean(config.researcher.kind)}",
            f"policy {config.judge.policy}",
            f"budget {duration(config.trial.budget_s)}",
            f"device {clean(device)}",
            f"sandbox {clean(sandbox)}",
        ]
        if num_trials:
            parts.append(f"goes on after {plural(num_trials, 'trial')}")
        self._say(Text(", ".join(parts), style="bold"))
        if sandbox == "none":
            self._say(Text("no sandbox: train.py can read and write what you can; see `autoresearch doctor`", "yellow"))

    def calibrating(self, index: int, total: int, measurement: Measurement | None = None) -> None:
        """Run `index` of `total` that measure the noise begins, or, with a measurement, has ended."""
        self._label = f"calibrating {index}/{total}"
        if measurement is not None:
            self._say_run(f"calibrating {index}/{total}", measurement)

    def trial_started(self, trial_id: int, description: str) -> None:
        """A proposal was committed and will run."""
        self._label = f"trial {trial_id}"
        self._say(Text(f"trial {trial_id}  ", style="bold") + Text(clean(description, 160)))

    def run_progress(self, elapsed_s: float, budget_s: float, reported: dict[str, Any]) -> None:
        """The run in hand has trained for `elapsed_s`; `reported` is the candidate's own telemetry."""
        if self._progress is None:
            return
        if self._task is None:
            self._task = self._progress.add_task("", total=budget_s)
        words = "  ".join(f"{name} {_figure(reported[name])}" for name in ("step", "loss") if name in reported)
        self._progress.update(
            self._task,
            completed=min(elapsed_s, budget_s),
            total=budget_s,
            description=self._label,
            times=f"{elapsed_s:.0f}/{budget_s:.0f} s",
            words=words,
        )

    def run_finished(self, measurement: Measurement) -> None:
        """A run ended, whatever its purpose."""
        self._end_run()
        if measurement.purpose is not Purpose.CALIBRATE:  # `calibrating` tells those
            self._say_run(f"  {measurement.purpose.value}", measurement)

    def trial_closed(self, trial: Trial) -> None:
        """The trial has its verdict."""
        decision = trial.decision
        if decision is None:
            return
        line = Text(f"trial {trial.trial_id}  ", style="bold")
        line.append(decision.verdict.value.replace("_", " "), style=VERDICT_STYLES[decision.verdict])
        if decision.val_bpb is not None:
            line.append(f"  {bpb(decision.val_bpb)}")
        if decision.gain_bpb is not None:
            line.append(f"  gain {signed(decision.gain_bpb)}", style="green" if decision.verdict is Verdict.KEEP else "")
        self._say(line.append(f"  {clean(decision.reason, 200)}", style="dim"))

    def champion_changed(self, commit: str, trial_id: int | None, val_bpb: float | None) -> None:
        """The research branch moved."""
        where = f"trial {trial_id}" if trial_id is not None else "the baseline"
        self._say(Text(f"champion  {short(commit)}, {where}, val_bpb {bpb(val_bpb)}", style="bold green"))

    def note(self, kind: str, text: str) -> None:
        """Something that a person should know."""
        self._say(Text(f"{clean(kind, 40)}: ", style="yellow") + Text(clean(text, 400)))

    def session_stopped(self, reason: str) -> None:
        """The session ended."""
        self._end_run()
        self._say(Text("stopped: ", style="bold") + Text(clean(reason, 400)))

    def _say_run(self, what: str, run: Measurement) -> None:
        line = Text(f"{what:<12}  ")
        if run.outcome is Outcome.SCORED:
            line.append(bpb(run.val_bpb))
        else:
            line.append(f"{run.outcome.value}: {clean(run.reason, 200)}", style="red")
        line.append(f"  trained {duration(run.training_s)} of {duration(run.total_s)} in all", style="dim")
        self._say(line)

    def _say(self, line: Text) -> None:
        self._console.print(Text(self._clock() + "  ", style="dim") + line, soft_wrap=True)

    def _end_run(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task)
        self._task = None


def _make_progress(console: Console) -> Progress:
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
    """Progress of a long step that is no session (`prepare`): called with a message, or with a part of a whole."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, what: str, done: float | None = None, total: float | None = None) -> None:
        """Say `what`, with `done` of `total` where that is known; elsewhere than on a terminal once for each `what`."""
        what = clean(what, 160)
        if self._progress is not None and total:
            if what not in self._tasks:
                self._tasks[what] = self._progress.add_task(what, total=total)
            self._progress.update(self._tasks[what], completed=done or 0, total=total)
        elif what != self._last:
            self._console.print(Text(what), soft_wrap=True)
        self._last = what
