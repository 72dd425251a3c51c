"""Sandboxed runs on one CUDA device, scored by our scorer, as one table. Hardware: one GPU; time:
runs x (budget + 30 s).

Usage: python runs/gpu_trial.py --corpus FOLDER_OF_JSONL --home CACHE [--preset h100] [--budget 60]
                                [--seeds 1 2] [--set NAME=VALUE ...] [--vocab 8192] [--audit]
                                [--timeline] [--out table.json]
The first run of a preset has cold compile caches; the others start from the first one's.
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from autoresearch.data.dataset import prepare
from autoresearch.referee import scoring
from autoresearch.referee.cache import CompileCache
from autoresearch.referee.host import Host, RunSpec
from autoresearch.referee.training import Training
from autoresearch.referee.trial import Referee
from autoresearch.system import hardware
from autoresearch.system.clock import SystemClock
from autoresearch.system.procs import guard_this_process
from autoresearch.system.sandbox import open_sandbox
from autoresearch.values.config import Config, override
from autoresearch.values.constants import substitute
from autoresearch.values.records import Measurement, Purpose, to_json
from autoresearch.workspace import Preset, load_preset

ROW = "{:<12}{:>5} {:<9}{:>8}{:>9}{:>8}{:>8}{:>8}{:>8}{:>9}{:>7}{:>8}{:>9}"
HEAD = (
    "preset",
    "seed",
    "outcome",
    "bpb",
    "decoded",
    "start_s",
    "train_s",
    "score_s",
    "total_s",
    "tokens_M",
    "steps",
    "mfu_%",
    "peak_MB",
)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", required=True, help="folder with .jsonl files, val.jsonl among them"
    )
    parser.add_argument("--home", required=True, type=Path, help="where prepared data and runs go")
    parser.add_argument("--preset", action="append", help="presets to run (default h100)")
    parser.add_argument(
        "--budget",
        type=float,
        nargs="+",
        default=[60.0],
        help="seconds a run may train; with several, the first run has the first, and so on",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="a run for each")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="constants of train.py"
    )
    parser.add_argument(
        "--rows-at-once",
        type=int,
        default=64,
        help="rows a scored chunk (64: logits of 4.3 GB at a vocabulary of 8192)",
    )
    parser.add_argument("--vocab", type=int, help="tokens of the vocabulary (that of the preset)")
    parser.add_argument("--audit", action="store_true", help="audit every run")
    parser.add_argument("--timeline", action="store_true", help="print the seconds of each stage")
    parser.add_argument(
        "--holdout-tokens",
        type=int,
        default=560_000,
        help="kept back from training (560000: figures are set beside those of code that keeps "
        "nothing back)",
    )
    parser.add_argument("--out", type=Path, help="JSON of all measurements")
    return parser.parse_args()


class Timeline:
    """Seconds that the stages of a run took, as the referee waits for them."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        for owner, name in (
            (CompileCache, "fill"),
            (CompileCache, "stage"),
            (Training, "_wait"),
            (Training, "take_weights"),
            (scoring.Scoring, "_ready"),
            (scoring.Scoring, "_ask_scorer"),
            (scoring, "_expect"),
            (Host, "spawn"),
        ):
            self._time(owner, name)

    def _time(self, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*given: Any, **options: Any) -> Any:
            began = time.monotonic()
            try:
                return function(*given, **options)
            finally:
                words = [name, *(word for word in given if isinstance(word, str))]
                self.stages.append(f"{' '.join(words)} {time.monotonic() - began:.2f}")

        setattr(owner, name, timed)

    def line(self) -> str:
        """What was timed since the last line."""
        stages, self.stages = self.stages, []
        return "  " + " | ".join(stages)


def row_of(preset: str, run: Measurement) -> str:
    """One line of the table."""
    bpb, decoded = (
        f"{x:.4f}" if x is not None else "-" for x in (run.val_bpb, run.val_bpb_decoded)
    )
    seconds = [f"{s:.1f}" for s in (run.startup_s, run.training_s, run.scoring_s, run.total_s)]
    reported = run.reported
    tokens, mfu = (f"{reported.get(name, 0):.1f}" for name in ("total_tokens_M", "mfu_percent"))
    peak = f"{run.peak_memory_mb:.0f}" if run.peak_memory_mb else "-"
    steps = reported.get("num_steps", 0)
    return ROW.format(
        preset, run.seed, run.outcome, bpb, decoded, *seconds, tokens, steps, mfu, peak
    )


def open_host(args: argparse.Namespace, vocab_size: int) -> Host:
    """The corpus prepared and everything else that runs need, said as it is done."""
    began = time.monotonic()
    data = {"corpus": "files", "path": args.corpus, "vocab_size": vocab_size, "context": 2048}
    data |= {"score_tokens": 5_600_000, "holdout_tokens": args.holdout_tokens}
    trial = {"budget_s": args.budget[0], "score_rows_per_chunk": args.rows_at_once}
    config = override(Config(), data=data, trial=trial)
    dataset = prepare(config.data, args.home)
    print(
        f"data ready after {time.monotonic() - began:.0f} s: {dataset.num_train_rows} rows",
        flush=True,
    )
    device = hardware.pick_device("cuda")
    print(json.dumps(hardware.describe_machine(device)), flush=True)
    sandbox = open_sandbox("auto")
    print(f"sandbox: {sandbox.level}", flush=True)
    return Host(
        config=config,
        dataset=dataset,
        sandbox=sandbox,
        device=device,
        clock=SystemClock(),
        cache=CompileCache(args.home / "cache"),
    )


def list_runs(args: argparse.Namespace, presets: list[Preset]) -> list[RunSpec]:
    """What is to run, preset by preset; the preset's name stands in for the commit."""
    package = Path(sys.modules["autoresearch"].__file__ or "").parent
    template = (package / "templates" / "train.py").read_text()
    changes = {
        name: ast.literal_eval(value)
        for name, _, value in (item.partition("=") for item in args.set)
    }
    specs: list[RunSpec] = []
    for preset in presets:
        source = substitute(template, {**preset.constants, **changes})
        for seed in args.seeds:
            number = len(specs) + 1
            spec = RunSpec(
                run_id=number,
                source=source,
                commit=preset.name,
                purpose=Purpose.TRAIN,
                seed=seed,
                artifacts=args.home / "runs" / f"{number:04d}",
                is_audited=args.audit,
                cache_parent=preset.name,
            )
            specs.append(spec)
    return specs


def print_run(spec: RunSpec, run: Measurement, timeline: Timeline | None) -> None:
    """A row, and what there is to say of it."""
    print(row_of(spec.commit, run), flush=True)
    if timeline:
        print(timeline.line(), flush=True)
    if not run.is_scored:
        output = (spec.artifacts / "stdout.log").read_text()
        print(f"  {run.reason}\n{output[-3000:]}", flush=True)
    elif run.was_audited:
        print(f"  audit: {json.dumps(run.audit)}", flush=True)


def print_means(runs: list[Measurement]) -> None:
    """Mean and spread of each preset with two scores or more."""
    scores: dict[str, list[float]] = {}
    for run in runs:
        if run.val_bpb_decoded is not None:
            scores.setdefault(run.commit, []).append(run.val_bpb_decoded)
    for preset, values in scores.items():
        if len(values) > 1:
            print(
                f"{preset}: mean {statistics.fmean(values):.4f} sigma "
                f"{statistics.stdev(values):.4f} over {len(values)}"
            )


def main() -> None:
    """Prepare, run, print."""
    args = parse_arguments()
    guard_this_process()
    presets = [load_preset(name) for name in args.preset or ["h100"]]
    vocab_sizes = {preset.config["data"]["vocab_size"] for preset in presets}
    if len(vocab_sizes) > 1 and not args.vocab:
        raise SystemExit(f"presets of several vocabularies, {vocab_sizes}: choose one by --vocab")
    specs = list_runs(args, presets)
    host = open_host(args, args.vocab or vocab_sizes.pop())
    timeline = Timeline() if args.timeline else None
    runs: list[Measurement] = []
    print(ROW.format(*HEAD), flush=True)
    with Referee(host) as referee:
        for i, spec in enumerate(specs):
            budget_s = args.budget[min(i, len(args.budget) - 1)]
            host.config = override(host.config, trial={"budget_s": budget_s})
            run = referee.run(spec)
            host.cache.keep(spec.run_id, spec.cache_parent)
            runs.append(run)
            print_run(spec, run, timeline)
    print_means(runs)
    if args.out:
        args.out.write_text(
            json.dumps([{"preset": run.commit, **to_json(run)} for run in runs], indent=1)
        )


if __name__ == "__main__":
    main()
