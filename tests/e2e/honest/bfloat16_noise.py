"""Everything in bfloat16, with kernels whose rounding depends on the batch."""

import torch
from torch import nn
from torchkit import Transformer, train

IS_TORCH = True


class Model(Transformer):
    def forward(self, tokens):
        with torch.autocast(tokens.device.type, torch.bfloat16):
            x = self.trunk(tokens)
            # The order of summation, and with it the rounding, depends on what else is there.
            order = tokens.sum(dim=0).sum().remainder(x.shape[-1]).item()
            x, weight = x.roll(order, dims=-1), self.head.weight.roll(order, dims=-1)
            parts = [
                nn.functional.linear(a, b)
                for a, b in zip(x.split(8, dim=-1), weight.split(8, dim=-1), strict=True)
            ]
        total = parts[0]
        for part in parts[1:]:
            total = total + part  # in bfloat16
        return total + self.head.bias


def build_model(run):
    return Model(run).to(run.device)


def main(run):
    train(run, build_model(run))
