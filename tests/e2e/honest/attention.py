"""A causal transformer, the usual."""

from torchkit import Transformer, train

IS_TORCH = True
IS_SLOW = True


Model = Transformer


def build_model(run):
    return Model(run).to(run.device)


def main(run):
    train(run, build_model(run))
