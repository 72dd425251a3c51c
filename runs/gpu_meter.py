"""What the benchmarks on a GPU share: times, errors, inputs, and how a result is told.

Used by gpu_bench.py and the files that it calls; not called by itself. Results are printed at once,
and kept in RESULTS for --out.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
BANDWIDTH = 3.0e12  # bytes/s as measured by copying
CUDA = torch.device("cuda")
RESULTS: dict[str, Any] = {}


def say(*words: object) -> None:
    """Print at once: the run may be cut."""
    print(*words, flush=True)


def median_ms(function: Callable[[], object], budget_ms: float = 60.0) -> float:
    """Median time by CUDA events, after warm-up."""
    function()
    function()
    torch.cuda.synchronize()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - started) * 1e3 < budget_ms:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def attempt(what: str, function: Callable[[], object]) -> object:
    """Run it; an error is printed, short, and the next thing follows."""
    try:
        return function()
    except Exception as error:  # noqa: BLE001 - the next section must run
        lines = traceback.format_exc().strip().splitlines()
        say(f"FAILED {what}: {type(error).__name__}: {str(error)[:600]}")
        say("   ", " | ".join(line.strip() for line in lines[-5:-1])[:300])
        return None
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def off(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative error in norm; NaN stays NaN."""
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def check(name: str, pairs: list[tuple[torch.Tensor, torch.Tensor]], bound: float) -> None:
    """Print the errors of some results, and whether all are under the bound."""
    errors = [off(got, wanted) for got, wanted in pairs]
    verdict = "ok  " if all(error < bound for error in errors) else "WRONG"
    RESULTS.setdefault("check", {})[name] = errors
    say(f"{verdict} {name:46s} {' '.join(f'{e:.2e}' for e in errors)}  bound {bound:.0e}")


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers on the device that want a gradient."""
    values = torch.randn(shape, device=CUDA) * scale
    return values.to(dtype).requires_grad_()


def doubled(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Copies in float64 that want a gradient of their own."""
    return [t.detach().double().requires_grad_() for t in tensors]


def row(name: str, ms: float, flops: float, moved: float) -> None:
    """One line: time, and the larger of arithmetic at 798 TFLOP/s and bytes at 3.0 TB/s."""
    floor = max(flops / 798e12, moved / BANDWIDTH) * 1e3
    RESULTS.setdefault("time", {})[name] = {"ms": ms, "floor_ms": floor}
    rate = f"{flops / ms / 1e9:.0f}" if flops else ""
    say(f"{name:44s} {ms:8.3f} {floor:8.3f} {ms / floor:8.2f}   {rate}")


def forward_backward(out: Callable[[], torch.Tensor], inputs: Any, grad: Any) -> Callable[[], Any]:
    """A function that does both."""
    return lambda: torch.autograd.grad(out(), inputs, grad)
