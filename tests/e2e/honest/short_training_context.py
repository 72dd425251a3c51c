"""Trains on half the context, is scored on all of it."""

from torch import nn
from torchkit import Block, train

IS_TORCH = True
IS_SLOW = True


class Model(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.embed = nn.Embedding(run.vocab_size, 32)
        self.block = Block(32)
        self.head = nn.Linear(32, run.vocab_size)

    def forward(self, tokens):
        return self.head(self.block(self.embed(tokens)))


def build_model(run):
    return Model(run).to(run.device)


def main(run):
    train(run, build_model(run), context=run.context // 2)
