"""Does the demo find a better model? Hardware: any 2 cores; time: about 8 minutes a try.

Each try runs `autoresearch demo` in a fresh workspace whose researcher has a seed of its own, then
the champion (B) against the baseline (A) in 3 pairs of fresh runs in the order A B, B A, A B.
Expected: mean difference over its standard error above 3 in at least 4 of 5 tries.

Usage: python runs/demo_proof.py [--tries 5] [--first-seed 0] [--folder FOLDER] [--out results.json]
"""

from __future__ import annotations

import argparse
import json
import math
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from autoresearch.assemble import open_referee
from autoresearch.referee.host import RunSpec
from autoresearch.search.history import History
from autoresearch.search.ledger import Ledger
from autoresearch.values.records import Purpose
from autoresearch.workspace import init, open_workspace

PAIRS = ("AB", "BA", "AB")


def compare(folder: Path) -> dict[str, object]:
    """Fresh paired runs of a workspace's champion and baseline."""
    workspace = open_workspace(folder)
    with Ledger.read(workspace.ledger_path) as ledger:
        history = ledger.history()
    commits = {"A": history.baseline, "B": history.champion}
    scores: dict[str, list[float]] = {"A": [], "B": []}
    with open_referee(workspace, workspace.config) as referee:
        referee.scoring.limit_by(history.runs_of(history.baseline))
        for number, arm in enumerate("".join(PAIRS)):
            spec = RunSpec(
                run_id=number + 1,
                source=workspace.repository.read(commits[arm], "train.py"),
                commit=commits[arm],
                purpose=Purpose.CONFIRM,
                seed=secrets.randbits(31),
                artifacts=folder / ".autoresearch" / "proof" / f"{number}",
            )
            run = referee.run(spec)
            if run.val_bpb is None:
                raise SystemExit(f"{folder}: run {number} of arm {arm} gave no score: {run.reason}")
            scores[arm].append(run.val_bpb)
    differences = [a - b for a, b in zip(scores["A"], scores["B"], strict=True)]
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return {
        "baseline": scores["A"],
        "champion": scores["B"],
        "mean_gain_bpb": mean,
        "standard_error_bpb": error,
        "ratio": mean / error if error else math.inf,
        "trials": len(history.trials),
        "runs": len(history.runs),
        "kept": len(history.crowns),
        "change": describe(history),
    }


def describe(history: History) -> str:
    """What the kept trials changed."""
    crowned = {crown.commit for crown in history.crowns}
    return "; ".join(trial.description for trial in history.trials if trial.commit in crowned)


def main() -> None:
    """All tries, one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0, help="the researcher's, first try")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "autoresearch-proof"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = []
    for number in range(1, args.tries + 1):
        folder = args.folder / f"try{number}-{time.time_ns()}"
        seed = args.first_seed + number - 1
        init(folder, "demo", {"researcher": {"seed": seed}})
        began = time.monotonic()
        command = [sys.executable, "-m", "autoresearch", "demo", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - began
        if done.returncode:
            raise SystemExit(
                f"try {number}: the demo failed with "
                f"{done.returncode}:\n{done.stdout}\n{done.stderr}"
            )
        if done.stdout:
            (folder / "demo.log").write_text(done.stdout)
        result = {"try": number, "seed": seed, "demo_s": round(seconds, 1), **compare(folder)}
        results.append(result)
        print(json.dumps(result), flush=True)
    passed = sum(result["ratio"] > 3 for result in results)
    print(f"{passed} of {len(results)} tries have a mean difference over 3 standard errors")
    if args.out:
        args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
