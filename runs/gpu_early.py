"""The MLP's gradient epilogue asking for its squares before its turn, beside quack's own.

Usage: python runs/gpu_early.py [ARGUMENTS OF gpu_bench.py]
       python runs/gpu_early.py --sections reference,h100 --seconds 14

Hardware: one Hopper card, with quack. Duration: half a minute, or twice that of gpu_bench.py. Each
way runs in a process and a compile cache of its own, for quack's key of a compiled kernel does not
know of it, and for two minutes at most, for a mistake here could hang. NOT RUN ON A CARD YET.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BENCH = Path(__file__).with_name("gpu_bench.py")
PATIENCE_S = 120
SHAPES = ((333, 128), (1000, 640), (4096, 512), (2**18, 512), (2**17, 768))  # rows, width


def main() -> None:
    """Both ways, one after the other."""
    if sys.argv[1:2] == ["--early"]:
        load_early()
        del sys.argv[1]
    elif sys.argv[1:2] == ["--own"]:
        del sys.argv[1]
    else:
        for way in ("--own", "--early"):
            run_apart(way)
        return
    if len(sys.argv) > 1:
        runpy.run_path(str(BENCH), run_name="__main__")
    else:
        measure()


def run_apart(way: str) -> None:
    """This script again, one way."""
    print(f"=== {way.lstrip('-')}", flush=True)
    command = [sys.executable, "-W", "ignore", __file__, way, *sys.argv[1:]]
    with tempfile.TemporaryDirectory() as folder:
        try:
            env = {**os.environ, "QUACK_CACHE_DIR": folder}
            subprocess.run(command, env=env, timeout=PATIENCE_S, check=False)
        except subprocess.TimeoutExpired:
            print(f"ended after {PATIENCE_S} s")


def load_early() -> None:
    """Let quack's epilogues be made that way in this process.

    Two halves of a block multiply and write in turn, and the half whose turn begins waits for
    memory. Here all of a tile's pieces have places of their own, so that each is free when the
    other half has read its piece, which is what a load waits for. The turn is waited for once the
    loads are under way: where `epilogue` first lets its threads meet.
    """
    from quack.epilogue import frontend
    from quack.gemm_sm90 import GemmSm90

    class TurnFirst:
        """A barrier whose first use in the code of a kernel waits for the turn as well."""

        def __init__(self, gemm: Any, barrier: Any) -> None:
            self.gemm, self.barrier, self.is_first = gemm, barrier, True

        def arrive_and_wait(self) -> None:
            if self.is_first:
                self.is_first = False
                GemmSm90.pingpong_barrier_sync(self.gemm, self.gemm._half, "epi")
            self.barrier.arrive_and_wait()

    class EarlyLoads(GemmSm90):  # type: ignore[misc]
        epi_c_stage_base = 64  # as many pieces as a tile has

        def pingpong_barrier_sync(self, warp_group_idx: Any, stage: str) -> None:
            if stage == "epi" and self.epi_c_stage:
                self._half = warp_group_idx
            else:
                super().pingpong_barrier_sync(warp_group_idx, stage)

        def epilogue(self, *given: Any, epilogue_barrier: Any, **named: Any) -> Any:
            if self.pingpong and self.epi_c_stage:
                epilogue_barrier = TurnFirst(self, epilogue_barrier)
            return super().epilogue(*given, epilogue_barrier=epilogue_barrier, **named)

    frontend._SM_BASE[9] = EarlyLoads


def measure() -> None:
    """The epilogue alone: against plain torch, against itself, and its time."""
    import gpu_meter as meter
    import torch

    from autoresearch.inside.ops import mlp

    for rows, width in SHAPES:
        grad = meter.normal(rows, width).detach()
        proj = meter.normal(width, 4 * width).detach() / width**0.5
        squares = meter.normal(rows, 4 * width).detach().relu().square()

        def call(given: Any = (grad, proj, squares)) -> torch.Tensor:
            return mlp._down_gradient(*given, "quack")

        out = call()
        for i in range(0, rows, max(2048, rows // 8)):
            part = slice(i, i + 2048)
            slope = 2 * squares[part].float().sqrt()
            goal = (grad[part].float() @ proj.float()) * slope
            meter.check(f"{rows} x {width}, rows from {i}", [(out[part], goal)], 1e-2)
        print("the same 20 times:", all(torch.equal(out, call()) for _ in range(20)))
        flops, moved = 8.0 * rows * width**2, 2.0 * rows * 9 * width
        meter.row(f"down gradient {rows} x {width}", meter.median_ms(call), flops, moved)


if __name__ == "__main__":
    main()
