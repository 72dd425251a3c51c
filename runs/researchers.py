"""Researchers side by side from one baseline. Hardware: 2 cores; time: about 25 s a trial (demo).

Blocks of trials alternate between the researchers, each in a workspace of its own, so that the
machine's drift meets all alike; at the end every champion meets the baseline and the other
champions in fresh runs, in turn.

Usage: python runs/researchers.py [--kinds tpe random] [--trials 40] [--block 8] [--preset demo]
                                  [--folder FOLDER] [--out curve.json]
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from autoresearch import workspace as workspaces
from autoresearch.assemble import open_referee
from autoresearch.referee.host import RunSpec
from autoresearch.search.ledger import Ledger
from autoresearch.values.records import Purpose, Verdict


def call(folder: Path, *arguments: str) -> None:
    """One command of ours in a workspace."""
    done = subprocess.run(
        [sys.executable, "-m", "autoresearch", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(
            f"{arguments} failed with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )


def curve(folder: Path) -> list[dict[str, object]]:
    """Trial by trial: verdict, score, and the gain over the baseline so far (sum of the judged
    gains that were kept).
    """
    with Ledger.read(workspaces.open_workspace(folder).ledger_path) as ledger:
        history = ledger.history()
    gained, points = 0.0, []
    for trial in history.trials:
        decision = trial.decision
        if decision is None:
            continue
        if decision.verdict is Verdict.KEEP:
            gained += decision.gain_bpb or 0.0
        point = {"trial": trial.trial_id, "verdict": decision.verdict, "val_bpb": decision.val_bpb}
        points.append({**point, "gained_bpb": gained, "runs": len(trial.runs)})
    return points


def final(folders: dict[str, Path], rounds: int) -> dict[str, list[float]]:
    """Fresh scores of the baseline and each champion, run in turn, `rounds` times."""
    scores: dict[str, list[float]] = {"baseline": [], **{kind: [] for kind in folders}}
    some = workspaces.open_workspace(next(iter(folders.values())))
    sources = {}
    for kind, folder in folders.items():
        workspace = workspaces.open_workspace(folder)
        with Ledger.read(workspace.ledger_path) as ledger:
            history = ledger.history()
        sources[kind] = workspace.repository.read(history.champion, "train.py")
        sources["baseline"] = workspace.repository.read(history.baseline, "train.py")
    with open_referee(some, some.config) as referee:
        for i in range(rounds):
            order = list(scores) if i % 2 == 0 else list(scores)[::-1]
            for number, name in enumerate(order):
                spec = RunSpec(
                    run_id=1 + i * len(order) + number,
                    source=sources[name],
                    commit=name,
                    purpose=Purpose.CONFIRM,
                    seed=secrets.randbits(31),
                    artifacts=some.state_folder / "final" / f"{i}-{name}",
                )
                run = referee.run(spec)
                if run.val_bpb is None:
                    raise SystemExit(f"{name} gave no score: {run.reason}")
                scores[name].append(run.val_bpb)
    return scores


def main() -> None:
    """Alternate, then compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", default=["tpe", "random"])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument(
        "--rounds", type=int, default=6, help="fresh runs of each champion at the end"
    )
    parser.add_argument("--block", type=int, default=8, help="trials before the other's turn")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    root = args.folder / f"autoresearch-researchers-{time.time_ns()}"
    folders = {kind: root / kind for kind in args.kinds}
    for folder in folders.values():
        workspaces.init(folder, args.preset)
        call(folder, "prepare")
    counts = [*range(args.block, args.trials, args.block), args.trials]
    for count in counts:
        for kind, folder in folders.items():
            call(folder, "run", "--researcher", kind, "--max-trials", str(count))
            for point in curve(folder)[-args.block :]:
                print(json.dumps({"kind": kind, **point}), flush=True)
    scores = final(folders, args.rounds)
    for name, values in scores.items():
        print(
            f"{name:<10} {statistics.fmean(values):.4f}  sigma {statistics.stdev(values):.4f}  "
            f"{values}"
        )
    if args.out:
        result = {
            "curves": {kind: curve(folder) for kind, folder in folders.items()},
            "final": scores,
        }
        args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
