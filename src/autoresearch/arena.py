"""Researchers head to head: one preset, equal budgets, several repeats, a table at the end.

Every researcher and repeat has a workspace of its own in the arena's folder, `tpe-01`, from the
same baseline; the researcher's seed counts up with the repeat. On one core blocks of trials
alternate between all of them, so that drift of the machine meets all alike; with more jobs, each
session is pinned to a core of its own. At the end every champion meets the baseline in fresh pairs
of runs, which nothing was selected by.

Nothing is lost when an arena ends early, however it does: sessions resume from their ledgers, the
pairs are in there too, and the settings lie in arena.json (arena_rules.py). Sessions are processes
that die with this one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoresearch import workspace as workspaces
from autoresearch.arena_rules import Rules, settings_of
from autoresearch.search.ledger import Ledger
from autoresearch.system.files import cache_home, hold_lock, write_atomic
from autoresearch.values.errors import AutoresearchError, UserError
from autoresearch.values.records import Purpose, Verdict
from autoresearch.views.arena import Entry, arena_json, arena_markdown
from autoresearch.views.arena_plot import arena_png

BLOCKS = 4  # of a budget, played in turn where not all sessions run at once
LAST_TRIAL_S = 45.0  # for the trials in hand, once the time is up
_POLL_S = 0.2
_START = "from autoresearch.system.procs import die_with_parent; die_with_parent(); "
_SESSION = _START + "from autoresearch.cli import main; main()"
_PAIRS = _START + (
    "import sys; from pathlib import Path; from autoresearch.arena import run_pairs; "
    "run_pairs(Path(sys.argv[1]), int(sys.argv[2]))"
)
_PAIR = "arena_pair"  # kind of the ledger's events

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """A stretch of one session up to `share` of the budget, or its pairs."""

    name: str
    share: float
    is_pairs: bool = False


def prepare(folder: Path, rules: Rules, report: Callable[[str, int, int], None]) -> list[str]:
    """Make the workspaces that are missing and their data; all names.

    Raises:
        UserError: a preset, researcher or setting that cannot be.
    """
    from autoresearch.data import dataset

    made = []
    for repeat in range(1, rules.repeats + 1):
        for kind in rules.researchers:
            name = f"{kind}-{repeat:02d}"
            if not (folder / name / workspaces.CONFIG_NAME).is_file():
                changes = settings_of(rules, kind, repeat)
                workspaces.init(folder / name, rules.preset, changes)
            made.append(name)
    opened = workspaces.open_workspace(folder / made[0])
    dataset.prepare(opened.config.data, cache_home(), report)
    return made


def play(
    folder: Path, rules: Rules, *, jobs: int, minutes: float, report: Report
) -> tuple[bool, dict[str, str]]:
    """Run what is left to run; whether all is done, and what went wrong by workspace.

    Args:
        folder: holds the workspaces that `prepare` made.
        rules: as they were opened.
        jobs: sessions at once, each on a core of its own.
        minutes: after which the trials in hand are the last ones; 0: no end.
        report: told a line whenever a stretch is over.
    """
    names = [f"{k}-{r:02d}" for r in range(1, rules.repeats + 1) for k in rules.researchers]
    cores = _cores()
    if jobs > len(cores):
        raise UserError(f"--jobs {jobs} needs as many cores, this process may use {len(cores)}")
    until = time.monotonic() + 60 * minutes if minutes else float("inf")
    with hold_lock(folder / "arena.lock", f"the arena in {folder}"):
        table = _Table(folder, rules, report, _plan(names, jobs), cores[:jobs])
        with contextlib.ExitStack() as stack:
            stack.callback(table.kill)
            while table.is_busy:
                if time.monotonic() > until:
                    return table.stop(), table.problems
                table.seat_and_collect()
                time.sleep(_POLL_S)
    return not table.problems, table.problems


def _plan(names: Sequence[str], jobs: int) -> list[_Task]:
    """Stretches in turn, each second round the other way about, then the pairs."""
    blocks = 1 if jobs >= len(names) else BLOCKS
    tasks = []
    for block in range(blocks):
        order = names if block % 2 == 0 else names[::-1]
        tasks += [_Task(name=name, share=(block + 1) / blocks) for name in order]
    return [*tasks, *(_Task(name=name, share=1.0, is_pairs=True) for name in names)]


class _Table:
    """The processes at work, one a core, and what waits for a core."""

    def __init__(
        self, folder: Path, rules: Rules, report: Report, tasks: list[_Task], cores: list[int]
    ) -> None:
        self.problems: dict[str, str] = {}
        self._folder = folder
        self._rules = rules
        self._report = report
        self._waiting = tasks
        self._cores = cores
        self._seats: dict[int, tuple[_Task, subprocess.Popen[bytes]]] = {}

    @property
    def is_busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self._seats or self._waiting)

    def seat_and_collect(self) -> None:
        """Take in who is done, give free cores to the next in line."""
        for core, (task, process) in list(self._seats.items()):
            if process.poll() is not None:
                del self._seats[core]
                self._collect(task, process.returncode)
        for core in self._cores:
            following = self._next() if core not in self._seats else None
            if following and (command := self._command(following)):
                self._seats[core] = (following, self._spawn(following, command, core))

    def stop(self) -> bool:
        """Let the trials in hand end, kill what takes too long; False: not all is done."""
        for _, process in self._seats.values():
            process.send_signal(signal.SIGINT)
        until = time.monotonic() + LAST_TRIAL_S
        while time.monotonic() < until and any(p.poll() is None for _, p in self._seats.values()):
            time.sleep(_POLL_S)
        self.kill()
        return False

    def kill(self) -> None:
        """Leave nobody behind; ledgers know what was finished."""
        for _, process in self._seats.values():
            process.kill()
            process.wait()
        self._seats.clear()

    def _next(self) -> _Task | None:
        """The first in line whose workspace is free."""
        taken = {task.name for task, _ in self._seats.values()}
        for task in self._waiting:
            if task.name not in taken:
                self._waiting.remove(task)
                return task
            taken.add(task.name)
        return None

    def _command(self, task: _Task) -> list[str]:
        """What to run for a task; nothing where it is done already, or its session failed."""
        rules, path = self._rules, self._folder / task.name
        entry = read_entry(path)
        if task.name in self.problems:
            return []
        if task.is_pairs:
            is_done = entry.history.champion == entry.history.baseline
            is_done = is_done or len(entry.pairs) >= rules.rounds
            return [] if is_done else ["-c", _PAIRS, str(path), str(rules.rounds)]
        if rules.hours:
            left = rules.hours * task.share - entry.hours
            return ["-c", _SESSION, "run", "--max-hours", f"{left:.4f}"] if left > 1e-3 else []
        count = max(1, round(rules.trials * task.share))
        is_done = len(entry.closes) >= count
        return [] if is_done else ["-c", _SESSION, "run", "--max-trials", str(count)]

    def _spawn(self, task: _Task, command: list[str], core: int) -> subprocess.Popen[bytes]:
        with (self._folder / f"{task.name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self._folder / task.name,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to pass on
            )
        if core >= 0:
            os.sched_setaffinity(process.pid, {core})
        return process

    def _collect(self, task: _Task, code: int) -> None:
        entry = read_entry(self._folder / task.name)
        if code:
            log = (self._folder / f"{task.name}.log").read_text(errors="replace").strip()
            self.problems[task.name] = (log.splitlines() or [f"exit code {code}"])[-1][:300]
            self._report(f"{task.name}: failed: {self.problems[task.name]}")
        elif task.is_pairs:
            gain = entry.fresh_gain
            text = f"{gain:+.4f}" if gain is not None else "unknown"
            self._report(f"{task.name}: {len(entry.pairs)} fresh pairs, mean gain {text}")
        else:
            closed = f"{len(entry.closes)} trials, {entry.count(Verdict.KEEP)} kept"
            self._report(f"{task.name}: {closed}, judged gain {entry.judged_gain:+.4f}")


def run_pairs(folder: Path, rounds: int) -> None:
    """Fresh runs of a workspace's champion and baseline next to each other in time.

    A B, B A and so on, until the ledger knows `rounds` pairs.

    Raises:
        AutoresearchError: a run gave no score twice.
    """
    from autoresearch.assemble import open_referee
    from autoresearch.referee.host import RunSpec

    workspace = workspaces.open_workspace(folder)
    first = len(read_entry(folder).pairs)
    with (
        Ledger.open(workspace.ledger_path) as ledger,
        open_referee(workspace, workspace.config) as referee,
    ):
        history = ledger.history()
        referee.scoring.limit_by(history.runs_of(history.baseline))
        arms = {"baseline": history.baseline, "champion": history.champion}

        def score(number: int, arm: str) -> float:
            for attempt in range(2):
                spec = RunSpec(
                    run_id=1 + 4 * number + 2 * attempt + (arm == "champion"),
                    source=workspace.repository.read(arms[arm], "train.py"),
                    commit=arms[arm],
                    purpose=Purpose.CONFIRM,
                    seed=secrets.randbits(31),
                    artifacts=workspace.state_folder / "arena" / f"{number}-{arm}",
                )
                run = referee.run(spec)
                if run.val_bpb is not None:
                    return run.val_bpb
            raise AutoresearchError(f"{folder.name}: the {arm} gave no score: {run.reason}")

        for number in range(first, rounds):
            order = sorted(arms, reverse=number % 2 == 1)
            scores = {arm: score(number, arm) for arm in order}
            ledger.append(_PAIR, commit=history.champion, **scores)


def write_results(
    folder: Path, rules: Rules, names: Sequence[str], problems: Mapping[str, str], *, is_done: bool
) -> tuple[str, dict[str, Any]]:
    """arena.md, arena.png and results.json as things stand; the page and the numbers."""
    entries = [read_entry(folder / name) for name in names]
    facts = dataclasses.asdict(rules)
    state = "Complete." if is_done else "Not complete."
    state += "".join(f" {name} failed: {problem}." for name, problem in problems.items())
    text = arena_markdown(entries, facts, state)
    numbers = arena_json(entries, facts, problems, is_done)
    write_atomic(folder / "arena.md", text)
    write_atomic(folder / "arena.png", arena_png(entries, by_hours=bool(rules.hours)))
    write_atomic(folder / "results.json", json.dumps(numbers, indent=1) + "\n")
    return text, numbers


def read_entry(folder: Path) -> Entry:
    """What a workspace's ledger tells of its part, also while its session runs."""
    workspace = workspaces.open_workspace(folder)
    kind, _, repeat = folder.name.rpartition("-")
    if not workspace.ledger_path.exists():
        return Entry(researcher=kind, repeat=int(repeat))
    closes, pairs = [], []
    with Ledger.read(workspace.ledger_path) as ledger:
        history = ledger.history()
        hours = 0.0
        for event, hours in _with_hours(ledger):
            if event.kind == "close_trial":
                closes.append(hours)
            elif event.kind == _PAIR and event.body["commit"] == history.champion:
                pairs.append((event.body["baseline"], event.body["champion"]))
    return Entry(
        researcher=kind,
        repeat=int(repeat),
        history=history,
        hours=hours,
        closes=tuple(closes),
        pairs=tuple(pairs),
        cost_usd=sum(call.usd for call in getattr(history, "calls", ())),  # of models
    )


def _with_hours(ledger: Ledger) -> Iterator[tuple[Any, float]]:
    """Events with the hours that sessions had been at work by then."""
    total = started = now = 0.0
    is_working = False
    for event in ledger.events():
        if event.kind == "start_session":
            total += now - started
            started = event.at
            is_working = True
        if is_working:
            now = event.at
        yield event, (total + now - started) / 3600
        is_working = is_working and event.kind != "stop_session"


def _cores() -> list[int]:
    """Cores that this process may use, one of each physical pair before the other; [-1...]: no
    pinning here.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [-1 - n for n in range(os.cpu_count() or 1)]
    allowed = sorted(os.sched_getaffinity(0))
    seen: set[str] = set()
    second = []
    for core in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        siblings = path.read_text().strip() if path.is_file() else str(core)
        second += [core] if siblings in seen else []
        seen.add(siblings)
    return [core for core in allowed if core not in second] + second
