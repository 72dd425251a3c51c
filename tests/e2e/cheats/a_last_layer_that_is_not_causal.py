"""A transformer whose last layer alone looks one position ahead."""

import torch
from torch import nn
from torchkit import Transformer, train

CAUGHT = "cheat: reads ahead"
IS_TORCH = True


class Model(Transformer):
    def __init__(self, run):
        super().__init__(run)
        self.mix = nn.Linear(32, 32)

    def forward(self, tokens):
        x = self.trunk(tokens)
        ahead = torch.cat([x[:, 1:], x[:, -1:]], dim=1)
        return self.head(x + self.mix(ahead))


def build_model(run):
    return Model(run).to(run.device)


def main(run):
    train(run, build_model(run), steps=100)
