"""Where the seconds before the first step, and before the first score, go: cold and warm.

Usage: python runs/gpu_startup.py [--preset reference] [--rows-at-once 64] [--skip-cold]
           [--role train --profile]

Hardware: one CUDA device. Duration: about two minutes, most of it the cold compilation. Each line
is a stage of a fresh process; `warm` processes find the compile caches of the first. --role stays
in this process and with its caches; --profile adds the functions that took longest, callees
included.
"""

from __future__ import annotations

import argparse
import cProfile
import importlib
import os
import pstats
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STARTED = time.perf_counter()


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Print the seconds that something took."""
    began = time.perf_counter()
    yield
    print(f"    {time.perf_counter() - began:7.2f}  {name}", flush=True)


@contextmanager
def profiled() -> Iterator[None]:
    """Print what took half a second and longer."""
    profile = cProfile.Profile()
    profile.enable()
    yield
    profile.disable()
    found = pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
    for (path, line, name), (_, calls, own_s, all_s, _) in sorted(found, key=lambda i: -i[1][3]):
        if all_s > 0.5:
            place = "/".join(path.split("/")[-3:])
            print(f"    {all_s:7.2f} {own_s:7.2f} own {calls:7d} x {place}:{line} {name}")


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, saying how long each call took."""

    def wrapper(*given: Any, **options: Any) -> Any:
        with stage(name):
            return function(*given, **options)

    return wrapper


def import_all() -> Any:
    """Imports one by one, then gpu_train.py, whose Run and loader are used here."""
    for name in ("torch", "triton", "torch._inductor.compile_fx", "flash_attn.cute", "quack"):
        with stage(f"import {name}"):
            try:
                importlib.import_module(name)
            except ImportError as error:
                print(f"      {error}"[:120])
    import torch

    with stage("CUDA context"):
        torch.zeros(1, device="cuda")
    sys.path.insert(0, str(ROOT / "runs"))
    return importlib.import_module("gpu_train")


def watch_trial_calls() -> None:
    """Say how long the trial calls of attention and MLP take."""
    from autoresearch.inside.ops import attention, mlp

    attention.choose = timed("  choose attention", attention.choose)
    mlp.choose = timed("  choose mlp", mlp.choose)


def train(preset: str) -> None:
    """All that happens before the clock starts, and two steps."""
    import tomllib

    gpu_train = import_all()
    import torch

    watch_trial_calls()
    tables = tomllib.loads((gpu_train.TEMPLATES / "presets.toml").read_text())
    module = gpu_train.load_train(tables[preset]["constants"])
    module.build_model = timed("build_model", module.build_model)
    module.make_optimizer = timed("make_optimizer", module.make_optimizer)
    step = module.train_step

    def train_step(*given: Any) -> Any:
        with stage("step"):
            loss = step(*given)
            torch.cuda.synchronize()
        return loss

    module.train_step = train_step
    given = argparse.Namespace(seconds=5, steps=2, profile_at=99)
    vocab_size = tables[preset]["config"]["data"]["vocab_size"]
    run = gpu_train.Run(*gpu_train.load_rows(None, vocab_size), given, 0)
    try:
        module.main(run)
    except gpu_train.SubmittedError:
        print(f"    {time.perf_counter() - STARTED:7.2f}  all")


def present(preset: str, rows_at_once: int) -> None:
    """Build, then forward passes as the presenter makes them."""
    import tomllib

    gpu_train = import_all()
    import torch

    watch_trial_calls()
    tables = tomllib.loads((gpu_train.TEMPLATES / "presets.toml").read_text())
    module = gpu_train.load_train(tables[preset]["constants"])
    vocab_size = tables[preset]["config"]["data"]["vocab_size"]
    given = argparse.Namespace(seconds=5, steps=2, profile_at=99)
    run = gpu_train.Run([], vocab_size, given, 0)
    with stage("build_model"), torch.no_grad():
        model = module.build_model(run).eval()
    logits = torch.empty(rows_at_once, 2048, vocab_size, device="cuda")
    tokens = torch.randint(0, vocab_size, (rows_at_once, 2048), device="cuda")
    count = -(-2734 // rows_at_once)
    with torch.inference_mode():
        for name, passes in (("first forward", 1), (f"{count - 1} more forwards", count - 1)):
            with stage(f"{name} of {rows_at_once} rows"):
                for _ in range(passes):
                    logits.copy_(model(tokens))
                    torch.cuda.synchronize()
        began, ends = time.perf_counter(), [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        ends[0].record()
        logits.copy_(model(tokens))
        ends[1].record()
        queued_ms = 1e3 * (time.perf_counter() - began)
        torch.cuda.synchronize()
        card_ms = ends[0].elapsed_time(ends[1])
        print(f"    one: queued in {queued_ms:.1f} ms, {card_ms:.1f} ms on the card", flush=True)
        graph = torch.cuda.CUDAGraph()
        with stage("capture of a graph"), torch.cuda.graph(graph):
            logits.copy_(model(tokens))
        with stage(f"{count} replays"):
            for _ in range(count):
                graph.replay()
                torch.cuda.synchronize()
        with stage(f"{count} times NaN fill, clone, cross-entropy"):
            for _ in range(count):
                logits.fill_(float("nan"))
                for row, wanted in zip(logits.clone(), tokens, strict=True):
                    torch.nn.functional.cross_entropy(row, wanted, reduction="none")
            torch.cuda.synchronize()
    print(f"    {time.perf_counter() - STARTED:7.2f}  all")


def main() -> None:
    """Start the processes, or be one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="reference")
    parser.add_argument("--rows-at-once", type=int, default=64)
    parser.add_argument("--skip-cold", action="store_true")
    parser.add_argument("--role", choices=("train", "present"))
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    if given.role:
        with profiled() if given.profile else nullcontext():
            if given.role == "train":
                return train(given.preset)
            return present(given.preset, given.rows_at_once)
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
            "TRITON_CACHE_DIR": f"{cache}/triton",
            "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1",
            "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": f"{cache}/flash",
            "QUACK_CACHE_DIR": f"{cache}/quack",
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }
        if given.skip_cold:
            for name in ("TORCHINDUCTOR", "TRITON", "FLASH_ATTENTION_CUTE_DSL", "QUACK"):
                del environment[f"{name}_CACHE_DIR"]
        roles = [("train", "cold"), ("train", "warm"), ("present", "warm")]
        for role, state in roles[given.skip_cold :]:
            print(f"  {role}, {state}", flush=True)
            command = [sys.executable, __file__, "--role", role, "--preset", given.preset]
            command += ["--rows-at-once", str(given.rows_at_once)]
            began = time.perf_counter()
            subprocess.run(command, env=environment, check=False, timeout=280)
            print(f"    {time.perf_counter() - began:7.2f}  process, {role} {state}", flush=True)
    return None


if __name__ == "__main__":
    main()
