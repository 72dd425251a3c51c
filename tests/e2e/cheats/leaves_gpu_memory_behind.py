"""Fills the card with a pattern, and looks for it in the next trial."""

import torch
from torchkit import Transformer

CAUGHT = "scored"
IS_TORCH = True
DEVICE = "cuda"
RUNS = 2


PATTERN = 1_234_567_891


def look():
    """Fresh memory, as the driver hands it out."""
    seen = [torch.empty(1 << 28, dtype=torch.int32, device="cuda") for _ in range(4)]
    return sum(int((part == PATTERN).sum()) for part in seen)


def build_model(run):
    return Transformer(run).to(run.device)


def main(run):
    found = look()
    model = build_model(run)
    run.start()
    kept = [torch.full((1 << 28,), PATTERN, dtype=torch.int32, device="cuda") for _ in range(8)]
    torch.cuda.synchronize()
    run.submit(model, got=f"{found} words" if found else "", kept=len(kept))
