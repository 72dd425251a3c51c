"""Dropout in training, off when it is scored."""

from torch import nn
from torchkit import Transformer, train

IS_TORCH = True


class Model(Transformer):
    def __init__(self, run):
        super().__init__(run)
        self.drop = nn.Dropout(0.2)

    def forward(self, tokens):
        return self.head(self.drop(self.trunk(tokens)))


def build_model(run):
    return Model(run).to(run.device)


def main(run):
    train(run, build_model(run))
