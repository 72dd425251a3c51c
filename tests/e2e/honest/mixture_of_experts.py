"""A mixture of experts that drops no token."""

import torch
from torch import nn
from torchkit import Transformer, train

IS_TORCH = True
IS_SLOW = True


class Experts(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.choose = nn.Linear(width, 4)
        self.experts = nn.ModuleList([nn.Linear(width, width) for _ in range(4)])

    def forward(self, x):
        flat = x.flatten(0, 1)
        share, chosen = self.choose(flat).softmax(dim=-1).max(dim=-1)
        answer = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            mine = (chosen == i).nonzero()[:, 0]  # as many as there are: sizes follow the batch
            answer = answer.index_add(0, mine, share[mine, None] * expert(flat[mine]))
        return x + answer.view_as(x)


class Model(Transformer):
    def __init__(self, run):
        super().__init__(run)
        self.experts = Experts(32)

    def forward(self, tokens):
        return self.head(self.experts(self.trunk(tokens)))


def build_model(run):
    return Model(run).to(run.device)


def main(run):
    train(run, build_model(run))
