"""Head and embedding are one matrix."""

from torch import nn
from torchkit import Transformer, train

IS_TORCH = True
IS_SLOW = True


class Model(Transformer):
    def __init__(self, run):
        super().__init__(run)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.head.weight = self.embed.weight


def build_model(run):
    return Model(run).to(run.device)


def main(run):
    train(run, build_model(run))
