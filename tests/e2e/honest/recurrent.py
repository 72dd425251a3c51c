"""A recurrent model."""

from torch import nn
from torchkit import train

IS_TORCH = True
IS_SLOW = True


class Model(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.embed = nn.Embedding(run.vocab_size, 32)
        self.cells = nn.GRU(32, 32, batch_first=True)
        self.head = nn.Linear(32, run.vocab_size)

    def forward(self, tokens):
        return self.head(self.cells(self.embed(tokens))[0])


def build_model(run):
    return Model(run).to(run.device)


def main(run):
    train(run, build_model(run))
