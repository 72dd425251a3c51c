"""Operators and the training step on one GPU: correctness, times against twin and roofline.

Usage: python runs/gpu_bench.py [--rows FOLDER] [--sections env,check,time,reference,h100]
           [--seconds 30] [--steps N] [--seeds 1] [--score] [--set NAME=VALUE ...]
           [--ops MODULE.NAME=VALUE ...] [--out FILE]

Hardware: one NVIDIA H100 80GB (on others, read the ceilings that `env` measures). Duration: about
two minutes for check and time; --seconds plus compilation (half a minute to one and a half) for a
training section. FOLDER comes from gpu_rows.py; without it training runs on random tokens, which
is as fast. Optional packages (FlashAttention 4, quack) are used where they can be imported. What
fails is printed, and the next thing follows.

More sections: `ideal` (what the presets' steps must cost at least), `leads` (checks and times of
what might be faster; a minute and a half), `sustained` (bfloat16 beside float8, FlashAttention 4
beside 3, with the card at its power cap; a minute), `tune` (what quack's own search over tile
shapes gives; minutes), and any preset of templates/presets.toml, which is trained. --ops sets
constants of the modules in inside/ops, for one run: residual.ENABLED=False.
--steps ends a run after that many steps instead (926 at
`reference`, with --score, is the parity check: rows packed the reference's way are scored too).
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import json
import time
import warnings
from pathlib import Path

import torch
from gpu_check import section_check
from gpu_ideal import section_ideal
from gpu_leads import section_leads
from gpu_meter import CUDA, RESULTS, attempt, median_ms, say
from gpu_sustained import section_sustained
from gpu_time import section_time, section_tune
from gpu_train import section_train


def section_env() -> None:
    """Versions, clocks, and what the card does at best."""
    major, minor = torch.cuda.get_device_capability()
    say(torch.__version__, torch.cuda.get_device_name(), f"sm_{major}{minor}")
    for name in ("triton", "flash_attn", "quack", "cutlass", "kernels", "einops"):
        spec = importlib.util.find_spec(name)
        say(f"  {name}: {spec.origin if spec else 'missing'}")
    a = torch.randn(2**30, device=CUDA, dtype=torch.bfloat16)
    b = torch.empty_like(a)
    copied = 4 * a.numel() / median_ms(lambda: b.copy_(a)) * 1e3
    x = torch.randn(8192, 8192, device=CUDA, dtype=torch.bfloat16)
    product = 2 * 8192**3 / median_ms(lambda: x @ x) * 1e3
    say(f"copy {copied / 1e12:.2f} TB/s, 8192^3 matmul {product / 1e12:.0f} TFLOP/s")
    RESULTS["ceilings"] = {"copy": copied, "matmul": product}


def set_operator_constant(name: str, value: str) -> None:
    """MODULE.NAME of autoresearch.inside.ops, which must have it."""
    module_name, constant = name.rsplit(".", 1)
    module = importlib.import_module(f"autoresearch.inside.ops.{module_name}")
    if not hasattr(module, constant):
        raise SystemExit(f"--ops: {module.__name__} has no {constant}")
    setattr(module, constant, ast.literal_eval(value))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--sections", default="env,check,time,reference,h100")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--profile-at", type=int, default=40)
    parser.add_argument("--score", action="store_true")
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--ops", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    pairs = (word.split("=", 1) for word in given.set)
    warnings.filterwarnings("ignore")  # of the DSLs, at every compilation
    given.set = {name: ast.literal_eval(value) for name, value in pairs}
    for word in given.ops:
        set_operator_constant(*word.split("=", 1))
    sections = {"env": section_env, "check": section_check}
    sections |= {"time": section_time, "tune": section_tune, "leads": section_leads}
    sections |= {"ideal": section_ideal, "sustained": section_sustained}
    for name in given.sections.split(","):
        started = time.perf_counter()
        say(f"===== {name}")
        if name in sections:
            attempt(name, sections[name])
        else:
            for seed in range(given.seeds):
                attempt(name, lambda n=name, s=seed: section_train(n, given, s))
        say(f"===== {name}: {time.perf_counter() - started:.0f} s")
        if given.out:
            given.out.write_text(json.dumps(RESULTS, indent=1, default=str))


if __name__ == "__main__":
    main()
