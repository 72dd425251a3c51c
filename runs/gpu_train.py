"""The training loop of train.py on one GPU, in a run without sandbox or processes.

Usage: python runs/gpu_bench.py --sections PRESET (this file is not called by itself)
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import math
import os
import re
import socket
import statistics
import sys
import time
import tomllib
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gpu_meter import CUDA, RESULTS, ROOT, attempt, say

from autoresearch.inside import harness
from autoresearch.wire.channel import Channel

TEMPLATES = ROOT / "src" / "autoresearch" / "templates"
PEAK = 989.5e12  # FLOP/s by the data sheet


class SubmittedError(Exception):
    """Ends main(), as the real submit does."""


class Run(harness.Run):
    """The harness's run with our own clock and nobody at the other end; profiles a few steps in the
    middle if asked.
    """

    def __init__(
        self, shards: list[torch.Tensor], vocab_size: int, given: argparse.Namespace, seed: int
    ) -> None:
        settings = {"device": CUDA, "vocab_size": vocab_size, "context": 2048}
        settings |= {"bos": int(shards[0][0, 0])}  # rows begin with it
        settings |= {"budget_s": float(given.seconds), "seed": seed, "threads": 0}
        here, there = socket.socketpair()
        there.close()
        super().__init__(Channel(here), settings, weights_fd=os.memfd_create("weights"))
        self.shards, self.max_steps = shards, given.steps
        self.profile_at = given.profile_at
        self.created = time.perf_counter()
        self.steps, self.first_s, self.profiler = 0, 0.0, None
        self.events: deque[torch.cuda.Event] = deque()
        self.marks: list[float] = []
        self.facts: dict[str, Any] = {}
        self.split: dict[str, float] = {}
        self.top: list[tuple[str, float]] = []
        self.idle: Counter[str] = Counter()
        self.loss = math.nan

    @contextlib.contextmanager
    def warmup(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        with super().warmup(model, optimizer):
            yield
        self.warm_s = time.perf_counter() - self.created

    def start(self) -> list[torch.Tensor]:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.started = time.perf_counter()
        return self.shards

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started

    @property
    def progress(self) -> float:
        if self.max_steps:
            return min(1.0, self.steps / self.max_steps)
        return min(1.0, self.elapsed_s / self.budget_s)

    def proceed(self) -> bool:
        event = torch.cuda.Event()
        event.record()
        self.events.append(event)
        if len(self.events) > 2:
            self.events.popleft().synchronize()
        self.marks.append(time.perf_counter())
        if self.steps == self.profile_at:
            torch.cuda.synchronize()
            self.profiler = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CUDA]
            )
            self.profiler.__enter__()
        elif self.profiler is not None and self.steps == self.profile_at + 2:
            torch.cuda.synchronize()
            self.profiler.__exit__(None, None, None)
            attempt("profile", self._read_profile)
            self.profiler = None
        going = (
            self.steps < self.max_steps if self.max_steps else self.elapsed_s < self.budget_s - 0.3
        )
        self.steps += going
        return going

    def _read_profile(self) -> None:
        kernels: Counter[str] = Counter()
        for event in self.profiler.key_averages():
            kernels[event.key] += event.self_device_time_total / 2e3
        for name, ms in kernels.items():
            self.split[kind_of(name)] = self.split.get(kind_of(name), 0.0) + ms
        self.top = kernels.most_common(28)
        spans = sorted(
            (event.time_range.start, event.time_range.end, event.name)
            for event in self.profiler.events()
            if event.device_type == torch.autograd.DeviceType.CUDA
        )
        self.idle = idle_between(spans[len(spans) // 2 :])

    def report(self, **facts: Any) -> None:
        if facts.get("loss") is not None:
            self.loss = facts["loss"]

    def submit(self, model: torch.nn.Module, **facts: Any) -> None:
        torch.cuda.synchronize()
        self.trained_s = self.elapsed_s
        self.model, self.facts = model, facts
        raise SubmittedError


KINDS = (
    ("split heads", r"split_heads"),
    ("residual and norm", r"add_norm|share_backward"),
    ("attention", r"flash|fmha|FlashAttention|sdpa|flex"),
    ("softcap CE", r"softcap_ce|rescale"),
    ("narrowing", r"^narrow"),
    ("embedding gradient", r"segment_sum|embedding|radix|[sS]ort|indexing_backward"),
    ("matrix products", r"gemm|nvjet|cutlass|GemmUniversal|quack|splitK|cublas"),
    ("compiled point-wise", r"triton_"),
    ("copies and fills", r"[mM]emcpy|[mM]emset|copy|fill|CatArray"),
)


def kind_of(kernel: str) -> str:
    """The class of a kernel by its name."""
    for kind, pattern in KINDS:
        if re.search(pattern, kernel):
            return kind
    return "other"


def idle_between(spans: list[tuple[float, float, str]]) -> Counter[str]:
    """Milliseconds in which nothing ran, by the kernel that came next; spans (from, to, name) in
    microseconds, in order.
    """
    idle: Counter[str] = Counter()
    busy_until = spans[0][1]
    for begin, end, name in spans[1:]:
        idle[name] += max(0.0, begin - busy_until) / 1e3
        busy_until = max(busy_until, end)
    return idle


def load_train(constants: dict[str, Any]) -> ModuleType:
    """A fresh train.py with some constants replaced."""
    from autoresearch.values.constants import substitute

    source = substitute((TEMPLATES / "train.py").read_text(), constants)
    folder = Path("/tmp") / f"train_{abs(hash(source))}"  # noqa: S108 - torch.compile wants a file
    folder.mkdir(exist_ok=True)
    path = folder / "train.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(f"train_{abs(hash(source))}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def load_rows(folder: Path | None, vocab_size: int = 0) -> tuple[list[torch.Tensor], int]:
    """Training shards as the harness hands them over, and their vocabulary.

    Without a folder random tokens out of `vocab_size`, in documents of 1,200 on average.
    """
    if folder is None:
        rows = torch.randint(1, vocab_size, (60_000, 2049)).to(torch.int16)
        rows[torch.rand(rows.shape) < 1 / 1200] = 0  # begins a document
        rows[:, 0] = 0
        return [rows], vocab_size
    paths = sorted(folder.glob("rows_*.npy"))
    shards = [torch.from_numpy(np.load(path).view(np.int16)) for path in paths]
    return shards, np.load(folder / "bytes.npy").shape[1]


def train_to_the_end(train: ModuleType, run: Run) -> None:
    """main() until it submits; then the garbage collector is as it was."""
    torch._dynamo.reset()
    try:
        train.main(run)
    except SubmittedError:
        pass
    finally:
        gc.enable()
        gc.unfreeze()


def section_train(preset: str, given: argparse.Namespace, seed: int) -> None:
    """The preset's real training loop for a while, and a table."""
    tables = tomllib.loads((TEMPLATES / "presets.toml").read_text())
    constants = {**tables[preset]["constants"], **given.set}
    vocab_size = tables[preset]["config"]["data"]["vocab_size"]
    run = Run(*load_rows(given.rows, vocab_size), given, seed)
    train_to_the_end(load_train(constants), run)
    tokens = run.facts["total_tokens_M"] * 1e6
    gaps = [b - a for a, b in zip(run.marks[20:], run.marks[21:], strict=False)]
    step_ms = statistics.median(gaps) * 1e3 if gaps else math.nan
    rate = tokens / run.steps / step_ms * 1e3
    name = f"{preset} seed {seed} {given.set or ''} {' '.join(given.ops)}"
    summary = {
        "step_ms": step_ms,
        "tokens_per_s": rate,
        "tokens_M_in_300_s": rate * 300 / 1e6,
        "mfu_percent": 100 * rate * run.model.flops_per_token() / PEAK,
        "mfu_exact_percent": 100 * rate * run.model.flops_per_token(True) / PEAK,
        "peak_GB": torch.cuda.max_memory_allocated() / 1e9,
        "ready_s": run.warm_s,
        "steps": run.steps,
        "trained_s": run.trained_s,
        "tokens_M": tokens / 1e6,
        "loss": float(run.loss),
    }
    if given.score and given.rows:
        summary |= attempt("score", lambda: score(run.model, given.rows)) or {}
    RESULTS.setdefault("train", {})[name] = {**summary, "split_ms": run.split}
    say(f"--- {name}")
    for key, value in summary.items():
        say(f"  {key:22s} {value:.4f}" if isinstance(value, float) else f"  {key:22s} {value}")
    if run.split:
        say("  split of a step, ms (profiled, sum of kernels):")
        for kind, ms in sorted(run.split.items(), key=lambda item: -item[1]):
            say(f"    {kind:24s} {ms:8.2f}")
        say(f"    {'all kernels':24s} {sum(run.split.values()):8.2f}")
        for kernel, ms in run.top:
            say(f"      {ms:8.3f}  {kernel[:100]}")
        say(f"    {'nothing (second step)':24s} {sum(run.idle.values()):8.2f}  before")
        for kernel, ms in run.idle.most_common(8):
            say(f"      {ms:8.3f}  {kernel[:100]}")


@torch.inference_mode()
def score(model: torch.nn.Module, folder: Path) -> dict[str, float]:
    """Bits per byte of the validation rows, ours and the reference's, by true and decoded bytes."""
    lengths = torch.from_numpy(np.load(folder / "bytes.npy").astype(np.int64)).to(CUDA)
    model.eval()
    results = {}
    for name in ("val", "val_reference"):
        if not (folder / f"{name}.npy").exists():
            continue
        rows = torch.from_numpy(np.load(folder / f"{name}.npy").view(np.int16))
        nats, num_bytes = (
            torch.zeros((), device=CUDA, dtype=torch.float64),
            torch.zeros(2, device=CUDA),
        )
        num_bytes = num_bytes.double()
        started = time.perf_counter()
        for part in rows.split(16):
            tokens = part.to(CUDA).long()
            logits = model(tokens[:, :-1])
            targets = tokens[:, 1:].flatten()
            losses = F.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
            counted = lengths[0][targets] > 0
            nats += losses[counted].double().sum()
            num_bytes += lengths[:, targets].sum(1).double()
        bits = (nats / math.log(2) / num_bytes).tolist()
        results |= {f"{name}_bpb": bits[0], f"{name}_bpb_decoded": bits[1]}
        results[f"{name}_score_s"] = time.perf_counter() - started
    return results
