"""The gallery of cheats, many times: what came of each, and what it would have got.

Usage: runs/gallery.sh [--times 20] [--jobs N] [--only NAME] [--device cuda] [--stub] [--out FILE]
                       [--minutes M]

Every worker has a referee, a scorer and candidates of its own, in the product's harness; with
`--stub` those that need no torch run in the tests' stand-in for it, ten times faster. FILE gets a
line of JSON a trial; called again, it goes on with what is missing there, so that a long run can be
made in pieces.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "stubs"))

from gallery import CONTEXT, Case, Gallery, Result, cases

_galleries: dict[bool, Gallery] = {}  # of this worker


def run(
    path: str, is_stub: bool, device: str, budget_s: float, until: float
) -> tuple[Result, float] | None:
    """One trial of a file, with the honest score beside it; None once the time is up."""
    if time.time() > until:
        return None
    case = Case(Path(path))
    is_stub = is_stub and not case.says("IS_TORCH", False)
    if is_stub not in _galleries:
        folder = Path(tempfile.mkdtemp(prefix="autoresearch-gallery-"))
        _galleries[is_stub] = Gallery(folder, is_stub=is_stub, device=device, budget_s=budget_s)
    gallery = _galleries[is_stub]
    try:
        return gallery.run(case), gallery.honest_bpb(case.says("CONTEXT", CONTEXT))
    except Exception as error:  # noqa: BLE001  one broken trial shall not end the table
        name = type(error).__name__
        return Result(case.name, False, "error", f"{name}: {error}", None), float("nan")


def stand_by() -> None:
    """A worker ends its scorers and removes its folders when the pool is shut."""
    Finalize(None, _close, exitpriority=1)


def _close() -> None:
    for gallery in _galleries.values():
        gallery.close()
        shutil.rmtree(gallery.folder, ignore_errors=True)


def show(case: Case, results: list[Result], honest_bpb: float) -> str:
    """A row of the table in Markdown."""
    count = Counter((r.verdict, r.reason) for r in results)
    verdict, reason = count.most_common(1)[0][0]
    scores = [r.bpb for r in results if r.bpb is not None]
    bpb = f"{min(scores):.3f}" if scores else "-"
    right = sum(r.is_right for r in results)
    reason = (reason[:110] + "...") if len(reason) > 113 else reason
    honest = "" if case.says("IS_TORCH", False) else f"{honest_bpb:.3f}"
    row = [case.name, verdict, reason or "no gain", bpb, honest, f"{right} of {len(results)}"]
    return f"| {' | '.join(row)} |"


def read(path: Path | None) -> list[dict[str, Any]]:
    """The trials of earlier calls; a line that was cut off in the middle is left out."""
    rows = []
    for line in path.read_text().splitlines() if path and path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def run_all(missing: list[Case], args: argparse.Namespace) -> Iterator[tuple[Case, Result, float]]:
    """One trial of each of these, as they end; what is not right is printed at once."""
    began, until = time.monotonic(), time.time() + 60 * args.minutes
    options = (args.stub, args.device, args.budget, until)
    with ProcessPoolExecutor(args.jobs, initializer=stand_by) as pool:
        tasks = {pool.submit(run, str(case.path), *options): case for case in missing}
        for done, task in enumerate(as_completed(tasks), start=1):
            if (found := task.result()) is None:
                continue
            result, honest_bpb = found
            row = {"name": result.name, "honest_bpb": honest_bpb, "result": asdict(result)}
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            if not result.is_right:
                print(f"WRONG: {result}", file=sys.stderr, flush=True)
            if done % 20 == 0:
                elapsed_s = time.monotonic() - began
                print(f"{done} of {len(tasks)}, {elapsed_s:.0f} s", file=sys.stderr, flush=True)
            yield tasks[task], result, honest_bpb


def main() -> None:
    """All trials, then the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 2))
    parser.add_argument("--budget", type=float, default=1.0, help="seconds a candidate may train")
    parser.add_argument("--only", default="", help="candidates whose file name holds this")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stub", action="store_true")
    parser.add_argument("--out", type=Path, help="a line of JSON a trial; go on where it ends")
    parser.add_argument("--minutes", type=float, default=math.inf, help="then start no more")
    args = parser.parse_args()
    chosen = [*cases("cheats", args.device), *cases("honest", args.device)]
    chosen = [case for case in chosen if args.only in case.path.stem]
    results: dict[str, list[Result]] = {case.name: [] for case in chosen}
    honest: dict[str, float] = {}
    for row in [row for row in read(args.out) if row["name"] in results]:
        results[row["name"]].append(Result(**row["result"]))
        honest[row["name"]] = row["honest_bpb"]
    missing = [case for n in range(args.times) for case in chosen if len(results[case.name]) <= n]
    for case, result, honest_bpb in run_all(missing, args):
        results[case.name].append(result)
        honest[case.name] = honest_bpb
    chosen = [case for case in chosen if results[case.name]]
    print("| candidate | verdict | evidence | bpb without the audit | honest bpb | right |")
    print("|---|---|---|---|---|---|")
    for case in chosen:
        print(show(case, results[case.name], honest[case.name]))
    wrong = [case.name for case in chosen if not all(r.is_right for r in results[case.name])]
    if wrong:
        sys.exit(f"not right every time: {', '.join(wrong)}")
    least = min(len(each) for each in results.values())
    print(f"all {len(chosen)} candidates got what they deserve, {least} times each")


if __name__ == "__main__":
    main()
