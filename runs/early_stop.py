"""Early stop on and off from one baseline and seed. Hardware: one core; time: about an hour (demo).

Blocks of trials alternate between two workspaces, so that the machine's drift meets both alike.
Then champions and baseline meet in fresh runs, in turn, and every trial that early stop ended is
run to its end next to a run of its parent: a false kill is one that beats it by a sigma, as the
screen asks. Printed: trials an hour, the champions' scores, false kills with an exact interval.

Usage: taskset -c 0 python runs/early_stop.py [--trials 60] [--block 6] [--rounds 6] [--seed 0]
           [--curves 20] [--preset demo] [--budget S] [--root FOLDER] [--out early_stop.json]

With --root the folder of an earlier call goes on where that ended.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import secrets
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from researchers import call

from autoresearch import workspace as workspaces
from autoresearch.assemble import open_referee
from autoresearch.referee.host import RunSpec
from autoresearch.referee.trial import Referee
from autoresearch.search.early_stop import count_false_kills, interval, replay
from autoresearch.search.history import History
from autoresearch.search.ledger import Ledger
from autoresearch.search.noise import measure_noise
from autoresearch.values.config import override
from autoresearch.values.records import Measurement, Outcome, Purpose, to_json

ARMS = ("on", "off")


def make_arm(folder: Path, args: argparse.Namespace, is_on: bool) -> None:
    """A workspace that differs from the other arm's in one line of autoresearch.toml."""
    workspaces.init(folder, args.preset)
    path = folder / "autoresearch.toml"
    text = path.read_text()
    text = re.sub(
        r"^early_stop_curves = \d+", f"early_stop_curves = {args.curves}", text, flags=re.M
    )
    if args.budget:
        text = re.sub(r"^budget_s = \S+", f"budget_s = {args.budget}", text, flags=re.M)
    if not is_on:
        text = re.sub(r'^early_stop = "on"', 'early_stop = "off"', text, flags=re.M)
    path.write_text(text)
    call(folder, "prepare")


def read(folder: Path) -> tuple[History, float]:
    """What an arm's ledger tells, and the seconds in which its sessions were at work."""
    with Ledger.read(workspaces.open_workspace(folder).ledger_path) as ledger:
        history = ledger.history()
        times = [(e.kind, e.at) for e in ledger.events()]
    started, total = math.nan, 0.0
    for kind, at in times:
        if kind == "start_session":
            started = at
        elif kind == "stop_session":
            total += at - started
    return history, total


def describe(name: str, folder: Path) -> dict[str, Any]:
    """How far an arm is."""
    history, seconds = read(folder)
    closed = [trial for trial in history.trials if trial.decision]
    gains = [
        t.decision.gain_bpb or 0.0 for t in closed if t.decision and t.decision.verdict == "keep"
    ]
    verdicts = [trial.decision.verdict.value for trial in closed if trial.decision]
    return {
        "arm": name,
        "trials": len(closed),
        "hours": round(seconds / 3600, 4),
        "trials_per_hour": round(3600 * len(closed) / seconds, 2) if seconds else None,
        "gained_bpb": round(sum(gains), 4),
        "verdicts": {name: verdicts.count(name) for name in sorted(set(verdicts))},
        **to_json(count_false_kills(history)),
    }


class Bench:
    """Fresh runs of any commit on one referee, outside the ledgers."""

    def __init__(self, referee: Referee, folder: Path) -> None:
        self.referee = referee
        self.folder = folder / f"fresh-{time.time_ns()}"
        self.num_runs = 0

    def run(self, source: str, commit: str) -> Measurement:
        """One run to its end; a disturbed one again."""
        while True:
            self.num_runs += 1
            measurement = self.referee.run(
                RunSpec(
                    run_id=self.num_runs,
                    source=source,
                    commit=commit,
                    purpose=Purpose.CONFIRM,
                    seed=secrets.randbits(31),
                    artifacts=self.folder / f"{self.num_runs:06d}",
                )
            )
            if measurement.outcome is not Outcome.DISTURBED:
                return measurement


def compare(bench: Bench, folders: dict[str, Path], rounds: int) -> dict[str, list[float]]:
    """Fresh scores of the baseline and both champions, run in turn there and back."""
    sources = {}
    for name, folder in folders.items():
        history, _ = read(folder)
        repository = workspaces.open_workspace(folder).repository
        sources["baseline"] = repository.read(history.baseline, "train.py")
        sources[name] = repository.read(history.champion, "train.py")
    scores: dict[str, list[float]] = {name: [] for name in sources}
    for i in range(rounds):
        for name in list(sources) if i % 2 == 0 else list(sources)[::-1]:
            measurement = bench.run(sources[name], name)
            if measurement.val_bpb is None:
                raise SystemExit(f"{name} gave no score: {measurement.reason}")
            scores[name].append(measurement.val_bpb)
            print(json.dumps({"fresh": name, "val_bpb": measurement.val_bpb}), flush=True)
    return scores


def run_to_the_end(bench: Bench, folder: Path) -> list[dict[str, Any]]:
    """Every ended trial, whole, next to a run of its parent: before it, after it, in turn."""
    history, _ = read(folder)
    repository = workspaces.open_workspace(folder).repository
    sigma = measure_noise(history, is_paired=True).sigma_bpb
    ended = [t for t in history.trials if any(r.outcome is Outcome.STOPPED for r in t.runs)]
    results = []
    for number, trial in enumerate(ended):
        commits = [trial.parent, trial.commit]
        order = commits if number % 2 == 0 else commits[::-1]
        scores = {c: bench.run(repository.read(c, "train.py"), c).val_bpb for c in order}
        ours, theirs = scores[trial.parent], scores[trial.commit]
        gain = ours - theirs if ours is not None and theirs is not None else None
        result = {
            "trial": trial.trial_id,
            "reason": trial.decision.reason if trial.decision else "",
            "val_bpb": theirs,
            "parent_bpb": ours,
            "gain_bpb": gain,
            "sigma_bpb": sigma,
            "is_false": gain is not None and gain > 0 and gain >= sigma,
        }
        print(json.dumps(result), flush=True)
        results.append(result)
    return results


def tell(scores: dict[str, list[float]], kills: list[dict[str, Any]]) -> None:
    """The figures for people."""
    for name, values in scores.items():
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        print(f"{name:<10} {statistics.fmean(values):.4f}  sigma {spread:.4f}  {len(values)} runs")
    differences = [off - on for on, off in zip(scores["on"], scores["off"], strict=True)]
    if len(differences) > 1:
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        mean = statistics.fmean(differences)
        print(f"off minus on, run by run: {mean:+.4f}, standard error {error:.4f}")
    num_false = sum(result["is_false"] for result in kills)
    low, high = interval(num_false, len(kills))
    print(f"false kills: {num_false} of {len(kills)} (95 % interval {low:.1%} to {high:.1%})")


def main() -> None:
    """Alternate, compare, run the ended ones to their end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=60, help="of each arm")
    parser.add_argument("--block", type=int, default=6, help="trials before the other's turn")
    parser.add_argument("--rounds", type=int, default=6, help="fresh runs of each at the end")
    parser.add_argument("--seed", type=int, default=0, help="of the researcher, in both arms")
    parser.add_argument("--curves", type=int, default=20, help="early_stop_curves of both arms")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--budget", type=float, default=0.0, help="seconds; 0: the preset's")
    parser.add_argument("--root", type=Path, help="folder to work in, or to go on in")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    root = args.root or Path(tempfile.gettempdir()) / f"autoresearch-early-stop-{time.time_ns()}"
    folders = {name: root / name for name in ARMS}
    print(f"working in {root}", flush=True)
    for name, folder in folders.items():
        if not folder.exists():
            make_arm(folder, args, name == "on")
    counts = [*range(args.block, args.trials, args.block), args.trials]
    for number, count in enumerate(counts):
        for name in ARMS if number % 2 == 0 else ARMS[::-1]:
            limits = ("--max-trials", str(count), "--seed", str(args.seed))
            call(folders[name], "run", "--researcher", "tpe", *limits)
            print(json.dumps(describe(name, folders[name])), flush=True)
    workspace = workspaces.open_workspace(folders["on"])
    config = override(workspace.config, judge={"early_stop": "off"})
    with open_referee(workspace, config) as referee:
        bench = Bench(referee, root)
        scores = compare(bench, folders, args.rounds)
        kills = run_to_the_end(bench, folders["on"])
    arms = [describe(name, folder) for name, folder in folders.items()]
    for arm in arms:
        print(json.dumps(arm))
    history, _ = read(folders["on"])
    good, marked = replay(history, workspace.config.trial.budget_s, args.curves)
    print(f"good curves: {good}, marked when held against the others: {marked}")
    tell(scores, kills)
    if args.out:
        runs = {
            name: [to_json(r) for r in read(folder)[0].runs] for name, folder in folders.items()
        }
        result = {"arms": arms, "fresh": scores, "ended": kills, "good": [good, marked]}
        args.out.write_text(json.dumps({**result, "runs": runs}, indent=1, default=str))


if __name__ == "__main__":
    main()
