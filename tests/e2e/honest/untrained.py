"""Hands over what it started with."""

from torchkit import Transformer

IS_TORCH = True
IS_SLOW = True


Model = Transformer


def build_model(run):
    return Model(run).to(run.device)


def main(run):
    model = build_model(run)
    run.start()
    run.submit(model)
