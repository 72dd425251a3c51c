"""torch.compile; without a card only its graph capture, which needs no compiler."""

import torch
from torchkit import Transformer, train

IS_TORCH = True
IS_SLOW = True


def build_model(run):
    model = Transformer(run).to(run.device)
    return torch.compile(model, backend="inductor" if run.device.type == "cuda" else "aot_eager")


def main(run):
    train(run, build_model(run))
