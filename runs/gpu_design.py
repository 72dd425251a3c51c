"""Eleven changes in twelve runs: each is in half of them, every pair balanced.

Usage: python runs/gpu_design.py --rows ROWS --out RUNS.jsonl [--seconds 60]
           [--worker 0 --workers 2]
       python runs/gpu_design.py --tell --out RUNS.jsonl

Hardware: one H100 or H200 for each worker; duration: 12 / workers x (seconds + 10 s). A quarter of
the scale of preset h100: width 640, ROWS (gpu_rows.py --parts 4 --vocab 16384) read about twice,
with half the batch and a quarter of the pairs. A change is worth the difference between the means
of the six runs with it and the six without; what it costs in tokens is in there. Blocks are not
compiled (0.8 % slower, and half a minute a run earlier), the optimizer and the gates of heads are.
A worker that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

START: dict[str, Any] = {
    "DEPTH": 9, "WIDTH": 640, "WINDOW_PATTERN": "SSL", "SHORT_WINDOW": 0.0625, "KEY_OFFSET": True,
    "HEAD_GATE": True, "ROTARY_BASE": 200000.0, "LAMBDA_X0": 0.05, "INIT_SCALE": 0.68,
    "TABLES_BF16": False, "EMBEDDING_LR": 0.9, "VALUE_LR": 0.9, "HEAD_LR": 0.005, "MATRIX_LR": 0.03,
    "PROJ_LR": 1.5, "BIGRAM_LR": 0.6, "ADAM_BETA1": 0.9, "ADAM_BETA2": 0.98, "TABLE_BETA2": 0.98,
    "MOMENTUM_RAMP": 200, "MOMENTUM_END": 0.975, "MATRIX_DECAY": 0.1, "EMBEDDING_DECAY": 0.001,
    "VALUE_DECAY": 0.003, "HEAD_DECAY": 0.01, "BIGRAM_DECAY": 0.02, "BIGRAM_ROWS": 2**16,
    "WARMDOWN_RATIO": 0.75, "FINAL_LR_FRAC": 0.05, "TOTAL_BATCH": 32, "MICRO_BATCH": 32,
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "long layers keep to the document": {"DOCUMENT_MASK": True},
    "queries and keys x 0.87": {"QK_GAIN": 0.87},
    "Adam rates x 1.4": {"EMBEDDING_LR": 1.26, "VALUE_LR": 1.26, "HEAD_LR": 0.007},
    "matrix rate 0.024 instead of 0.03": {"MATRIX_LR": 0.024},
    "rate of the MLP's second matrix x 2, not 1.5": {"PROJ_LR": 2.0},
    "every second layer long, not every third": {"WINDOW_PATTERN": "SL"},
    "twice as many rows for pairs": {"BIGRAM_ROWS": 2**17},
    "rate of pairs 1.0 instead of 0.6": {"BIGRAM_LR": 1.0},
    "longer Adam memory still": {"ADAM_BETA2": 0.99, "TABLE_BETA2": 0.995},
    "short windows of 64 instead of 128": {"SHORT_WINDOW": 0.03125},
    "cool-down 0.9, NorMuon memory 0.98": {"WARMDOWN_RATIO": 0.9, "NORMUON_BETA2": 0.98},
}  # fmt: skip


def make_design(num: int = 11) -> np.ndarray:
    """(12, 11) of 0 and 1, columns balanced by pairs: Plackett, Burman, Biometrika 33, 1946."""
    squares = {i * i % num for i in range(num)}
    first = np.array([int(i in squares) for i in range(num)])
    return np.array([*(np.roll(first, i) for i in range(num)), np.zeros(num, dtype=int)])


def compile_small_parts(train: ModuleType, model: Any, optimizer: Any) -> None:
    """What is quickly compiled, in place of train.py's compile_parts."""
    import torch

    torch._dynamo.config.recompile_limit = 64
    whole = partial(torch.compile, dynamic=False, fullgraph=True)
    optimizer.adamw_rule, optimizer.muon_rule = whole(train.adamw_rule), whole(train.muon_rule)
    model.enter, train.gate_heads = whole(train.enter), whole(train.gate_heads)


def run_once(changes: set[str], given: Namespace) -> dict[str, Any]:
    """Train and score one combination."""
    import gpu_train

    began = time.perf_counter()
    constants = dict(START)
    for name in changes:
        constants |= CHANGES[name]
    train = gpu_train.load_train(constants)
    train.compile_parts = partial(compile_small_parts, train)
    options = Namespace(seconds=given.seconds, steps=0, profile_at=-1)
    run = gpu_train.Run(*gpu_train.load_rows(given.rows), options, given.seed)
    gpu_train.train_to_the_end(train, run)
    result = {"changes": sorted(changes), "seed": given.seed, "ready_s": run.warm_s}
    result |= {"tokens_M": run.facts["total_tokens_M"], "steps": run.steps, "loss": float(run.loss)}
    result |= gpu_train.score(run.model, given.rows)
    return {**result, "all_s": time.perf_counter() - began}


def work(given: Namespace) -> None:
    """This worker's share of the runs; each result is kept at once, and what is there is skipped.

    Ends with code 1 if a run broke the device, which only a new process can use again.
    """
    import gpu_meter
    import torch

    names, design = list(CHANGES), make_design()
    known = {run["number"] for run in read_runs(given.out) if run["changes"] is not None}
    for number in range(given.worker, len(design), given.workers):
        if number in known:
            continue
        changes = {name for name, is_on in zip(names, design[number], strict=True) if is_on}
        result = gpu_meter.attempt(f"run {number}", partial(run_once, changes, given))
        result = result if isinstance(result, dict) else {"changes": None}
        with given.out.open("a") as file:
            file.write(json.dumps({"number": number, **result}) + "\n")
        if result["changes"] is None:
            torch.cuda.synchronize()
            continue
        figures = f"{result['val_bpb_decoded']:.5f}, {result['tokens_M']:.1f} M tokens"
        gpu_meter.say(f"--- run {number}: {figures}, {result['all_s']:.0f} s in all")


def read_runs(path: Path) -> list[dict[str, Any]]:
    """What was written so far; a run that failed has no changes."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def estimate(runs: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """What each change does to val_bpb_decoded and to the logarithm of tokens, if it can be told.

    With runs missing, the smallest effects that explain the others.
    """
    signs = np.array([[float(name in run["changes"]) for name in CHANGES] for run in runs])
    figures = np.array([(run["val_bpb_decoded"], np.log(run["tokens_M"])) for run in runs])
    effects = np.linalg.lstsq(signs - signs.mean(0), figures - figures.mean(0), rcond=None)[0]
    return {name: (bpb, tokens) for name, (bpb, tokens) in zip(CHANGES, effects, strict=True)}


def tell(path: Path) -> None:
    """A line for each change, the best first."""
    runs = [run for run in read_runs(path) if run["changes"] is not None]
    print(f"{len(runs)} runs; val_bpb_decoded with the change less that without, and tokens:")
    for name, (bpb, tokens) in sorted(estimate(runs).items(), key=lambda item: item[1]):
        print(f"{name:46s} {bpb:+.5f}  {100 * (np.exp(tokens) - 1):+5.1f} %")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--tell", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.tell:
        tell(given.out)
    elif not given.rows:
        parser.error("--rows is needed, a folder that gpu_rows.py made")
    else:
        work(given)


if __name__ == "__main__":
    main()
