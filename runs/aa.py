"""A/A: how often a change that changes nothing is kept. Hardware: CPU; the more cores the better.

First, for real: sessions of the demo preset, one pinned to each core, whose researcher adds a
constant that nobody reads; every keep is false. Then, from all their runs, 100 sessions of 100 such
trials are resampled for each rule and fed to the package's own judge, with three kinds of noise:
  gaussian   of the recorded spread, independent: what design part 6 assumes
  shuffled   recorded deviations from the mean of their core, in random order: their shape, no drift
  in order   recorded stretches as they came, one after another: with the drift of the machine
Intervals are Clopper-Pearson's, 95 %; trials of one session share a champion, so they are a little
too narrow. The last column is runs/judge_table.py's, which knows sigma, compares unpaired, and lets
greedy begin with one run of the baseline. A real session begins with the best of six calibration
runs: of records among 106 runs after the first 6 there are 2.79, not 4.17 (2.76 seen, gaussian).

    python runs/aa.py --jobs 32 --cores 0-31 --out runs.json     # about 4 minutes, 128 trials
    python runs/aa.py --jobs 2 --trials 120 --out runs.json      # two cores: about 25 minutes
    python runs/aa.py --from runs.json more.json                 # again, without runs: 2 minutes

Nothing is downloaded: text is the standard library's. A worker's sandbox is the best there is.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from autoresearch.search.history import FRESH, History
from autoresearch.search.judge import next_champion_run_due, next_step
from autoresearch.search.noise import Noise, measure_noise
from autoresearch.values.config import JudgeSettings
from autoresearch.values.records import (
    Decision,
    Measurement,
    Outcome,
    Proposal,
    Purpose,
    Trial,
    Verdict,
)

PREDICTED = {"greedy": 4.17, "screen": 2.35}  # keeps of 100 no-effect trials, runs/judge_table.py
SESSIONS, TRIALS = 100, 100
LEAST_RUNS = 200
SOURCES = ("gaussian", "shuffled", "in order")
RULES = (("greedy", "off"), ("screen", "off"), ("screen", "on"))
Run = dict[str, Any]


class NoEffect:
    """Proposes a constant that nobody reads."""

    name = "aa"

    def propose(self, history: History, champion_commit: str, champion_source: str) -> Proposal:
        """The next one."""
        number = history.num_proposals + 1
        source = f"{champion_source}\nNO_EFFECT_{number} = {number}\n"
        change = f"NO_EFFECT_{number}"
        return Proposal(source=source, description=change, parent=champion_commit, researcher="aa")


class Silent:
    """An observer that sees nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def work(folder: Path, core: int, num_trials: int, budget_s: float) -> dict[str, Any]:
    """One session on one core: its runs in order and its verdicts."""
    from autoresearch.assemble import open_session
    from autoresearch.search.ledger import Ledger
    from autoresearch.workspace import init

    os.sched_setaffinity(0, {core})
    trial = {"device": "cpu", **({"budget_s": budget_s} if budget_s else {})}
    workspace = init(folder, "demo", {"session": {"max_trials": num_trials}, "trial": trial})
    with open_session(workspace, workspace.config, Silent()) as session:  # type: ignore[arg-type]
        session.researcher = NoEffect()
        session.run()
    with Ledger.read(workspace.ledger_path) as ledger:
        history = ledger.history()
    runs = [
        {"core": core, "val_bpb": r.val_bpb, "at": r.at, "total_s": r.total_s, "purpose": r.purpose,
         "sandbox": r.sandbox, "steps": r.reported.get("step"), "outcome": r.outcome}
        for r in history.runs
    ]  # fmt: skip
    verdicts = [t.decision.verdict.value for t in history.trials if t.decision]
    return {"core": core, "runs": runs, "verdicts": verdicts}


def record(jobs: int, cores: list[int], num_trials: int, budget_s: float) -> list[dict[str, Any]]:
    """All sessions, side by side; data is prepared once before."""
    from autoresearch.data.dataset import prepare
    from autoresearch.system.files import cache_home
    from autoresearch.workspace import init

    each = math.ceil(num_trials / jobs)
    with tempfile.TemporaryDirectory(prefix="aa-", ignore_cleanup_errors=True) as top:
        made = init(Path(top) / "data", "demo")
        prepare(made.config.data, cache_home(), lambda *_: None)
        tasks = [(Path(top) / f"w{n}", cores[n], each, budget_s) for n in range(jobs)]
        context = multiprocessing.get_context("spawn")  # sessions start processes: no forked state
        with context.Pool(jobs, maxtasksperchild=1) as pool:
            return pool.starmap(work, tasks, chunksize=1)


def make_noise(sessions: list[dict[str, Any]], source: str) -> Callable[[], Iterator[float]]:
    """Endless deviations of runs from what they should have scored, a new stretch each call."""
    rng = np.random.default_rng(0)
    stretches = []
    for session in sessions:
        scores = [run["val_bpb"] for run in session["runs"] if run["val_bpb"] is not None]
        if len(scores) >= 3:
            middle, grow = statistics.fmean(scores), math.sqrt(len(scores) / (len(scores) - 1))
            stretches.append([(score - middle) * grow for score in scores])
    pooled = np.concatenate(stretches)

    def draw() -> Iterator[float]:
        while True:
            if source == "gaussian":
                yield from rng.normal(0, pooled.std(), 256).tolist()
            elif source == "shuffled":
                yield from rng.choice(pooled, 256).tolist()
            else:
                yield from stretches[rng.integers(len(stretches))]

    return draw


@dataclasses.dataclass
class Simulated:
    """A session in memory: the judge asks, `noise` answers."""

    rules: JudgeSettings
    noise: Iterator[float]
    is_paired: bool
    run_s: float
    middle: float
    runs: list[Measurement] = dataclasses.field(default_factory=list)
    trials: list[Trial] = dataclasses.field(default_factory=list)
    champion: str = "base"
    known: tuple[int, Noise] = (-1, Noise(sigma_bpb=0.0, degrees_of_freedom=0))

    def history(self) -> History:
        """What the judge looks at."""
        last = tuple(self.trials[-15:])  # enough for the rule that counts trials since a run
        return History(baseline="base", champion=self.champion, runs=tuple(self.runs), trials=last)

    def run(self, commit: str, purpose: Purpose) -> Measurement:
        """One run of a program that is as good as any other."""
        number = len(self.runs) + 1
        self.runs.append(
            Measurement(
                run_id=number, commit=commit, purpose=purpose, seed=number,
                outcome=Outcome.SCORED, val_bpb=self.middle + next(self.noise),
                at=number * self.run_s, total_s=self.run_s,
            )
        )  # fmt: skip
        return self.runs[-1]

    def measured(self) -> Noise:
        """As `measure_noise`, worked out again only after a fresh run."""
        num_fresh = sum(run.purpose in FRESH for run in self.runs)
        if num_fresh != self.known[0]:
            self.known = (num_fresh, measure_noise(self.history(), self.is_paired))
        return self.known[1]

    def trial(self, number: int) -> Decision:
        """One trial with all the runs that it needs."""
        now = len(self.runs) * self.run_s
        while need := next_champion_run_due(self.rules, self.history(), now, self.is_paired):
            self.run(self.champion, need.purpose)
        commit, mine = f"trial {number}", []
        while True:
            answer = next_step(
                self.rules, self.measured(), [r for r in self.runs if r.commit == self.champion],
                mine, is_paired=self.is_paired, now=len(self.runs) * self.run_s,
            )  # fmt: skip
            if isinstance(answer, Decision):
                break
            if answer.who == "champion":
                self.run(self.champion, answer.purpose)
            else:
                mine.append(self.run(commit, answer.purpose))
        self.trials.append(
            Trial(
                trial_id=number, commit=commit, parent=self.champion, description="",
                researcher="aa", parameters=None, is_simplification=False, at=0.0,
                runs=tuple(mine), decision=answer,
            )
        )  # fmt: skip
        if answer.verdict is Verdict.KEEP:
            self.champion = commit
        return answer


def resample(
    sessions: list[dict[str, Any]], policy: str, pairing: str, source: str
) -> tuple[int, int]:
    """False keeps and runs of SESSIONS sessions of TRIALS trials."""
    lengths = [run["total_s"] for session in sessions for run in session["runs"]]
    scores = [r["val_bpb"] for s in sessions for r in s["runs"] if r["val_bpb"] is not None]
    rules = JudgeSettings(policy=policy, pairing=pairing, implausible_gain_frac=0.30)
    draw = make_noise(sessions, source)
    keeps = num_runs = 0
    for _ in range(SESSIONS):
        simulated = Simulated(
            rules, draw(), pairing == "on", statistics.median(lengths), statistics.fmean(scores)
        )
        verdicts = [simulated.trial(n).verdict for n in range(1, TRIALS + 1)]
        keeps += verdicts.count(Verdict.KEEP)
        num_runs += len(simulated.runs)
    return keeps, num_runs


def rate(keeps: int, trials: int) -> str:
    """Keeps of 100 trials with the interval."""
    from scipy.stats import binomtest

    low, high = binomtest(keeps, trials).proportion_ci(0.95)
    return f"{100 * keeps / trials:5.2f}  ({100 * low:.2f} to {100 * high:.2f})"


def report(sessions: list[dict[str, Any]]) -> None:
    """Both tables."""
    runs = [run for session in sessions for run in session["runs"]]
    scored = [run["val_bpb"] for run in runs if run["val_bpb"] is not None]
    verdicts = [verdict for session in sessions for verdict in session["verdicts"]]
    print(f"{len(runs)} recorded runs, {len(scored)} scored, on {len(sessions)} cores; sandbox: "
          f"{', '.join(sorted({run['sandbox'] for run in runs}))}")  # fmt: skip
    if len(scored) < LEAST_RUNS:
        print(f"fewer than {LEAST_RUNS}: what is resampled says little; add --trials")
    print(f"val_bpb {statistics.fmean(scored):.4f}, sigma {statistics.stdev(scored):.4f} over all")
    kinds = {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))}
    print(f"real trials, screen, paired: {len(verdicts)}: {kinds}")
    print(f"  kept of 100: {rate(kinds.get('keep', 0), len(verdicts))}\n")
    print(f"resampled, {SESSIONS} sessions of {TRIALS} trials each; keeps of 100, all false")
    print("policy  paired  noise      kept   (95 %)           runs a trial  predicted")
    for policy, pairing in RULES:
        for source in SOURCES:
            keeps, num_runs = resample(sessions, policy, pairing, source)
            cells = f"{policy}  {pairing:6}  {source:9}  {rate(keeps, SESSIONS * TRIALS):23}"
            predicted = "-" if pairing == "on" else f"{PREDICTED[policy]:.2f}"
            print(f"{cells}  {num_runs / SESSIONS / TRIALS:12.2f}  {predicted:>9}", flush=True)


def main() -> None:
    """Record or load, then the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2, help="sessions side by side")
    parser.add_argument("--cores", default="", help="first-last; one for each job")
    parser.add_argument("--trials", type=int, default=128, help="real trials in all")
    parser.add_argument("--budget", type=float, default=0.0, help="seconds; 0: the preset's")
    parser.add_argument("--out", type=Path, help="where the recorded runs go")
    parser.add_argument(
        "--from", dest="sources", nargs="+", type=Path, help="recorded runs, instead of new"
    )
    options = parser.parse_args()
    if options.sources:
        sessions = [s for source in options.sources for s in json.loads(source.read_text())]
    else:
        usable = sorted(os.sched_getaffinity(0))
        first, _, last = options.cores.partition("-")
        cores = list(range(int(first), int(last or first) + 1)) if first else usable
        if len(cores) < options.jobs:
            raise SystemExit(f"{options.jobs} jobs need as many cores, there are {len(cores)}")
        began = time.monotonic()
        sessions = record(options.jobs, cores, options.trials, options.budget)
        print(f"recorded in {time.monotonic() - began:.0f} s")
        if options.out:
            with contextlib.suppress(FileExistsError):
                options.out.parent.mkdir(parents=True)
            options.out.write_text(json.dumps(sessions))
    report(sessions)


if __name__ == "__main__":
    main()
