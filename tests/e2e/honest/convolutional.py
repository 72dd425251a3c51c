"""Causal convolutions, padded on the left."""

import torch
from torch import nn
from torchkit import train

IS_TORCH = True
IS_SLOW = True


class Model(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.embed = nn.Embedding(run.vocab_size, 32)
        self.layers = nn.ModuleList([nn.Conv1d(32, 32, 3, dilation=d) for d in (1, 2, 4)])
        self.head = nn.Linear(32, run.vocab_size)

    def forward(self, tokens):
        x = self.embed(tokens).mT
        for layer in self.layers:
            x = x + torch.relu(layer(nn.functional.pad(x, (2 * layer.dilation[0], 0))))
        return self.head(x.mT)


def build_model(run):
    return Model(run).to(run.device)


def main(run):
    train(run, build_model(run))
