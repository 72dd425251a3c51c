"""torch.compile; without a card only its graph capture, which needs no compiler."""

import torch
from torchkit import BATCH_ROWS, Transformer, loss_of, train

IS_TORCH = True
IS_SLOW = True


def build_model(run):
    model = Transformer(run).to(run.device)
    return torch.compile(model, backend="inductor" if run.device.type == "cuda" else "aot_eager")


def main(run):
    model = build_model(run)
    loss_of(model, run.synthetic_rows(BATCH_ROWS).to(run.device).long()).backward()  # off the clock
    model.zero_grad()
    train(run, model)
