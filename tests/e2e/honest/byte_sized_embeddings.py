"""Embeddings stored in a byte each, with a scale for every row."""

import torch
from torchkit import Transformer, train

IS_TORCH = True
IS_SLOW = True


class Model(Transformer):
    def __init__(self, run):
        super().__init__(run)
        shape = self.embed.weight.shape
        self.register_buffer("small", torch.zeros(shape, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(shape[0], 1))

    @torch.no_grad()
    def round_off(self):
        weight = self.embed.weight
        self.scale.copy_(weight.abs().amax(dim=1, keepdim=True) / 127)
        self.small.copy_((weight / self.scale).round())
        weight.copy_(self.small * self.scale)

    def trunk(self, tokens):
        if not self.training:
            self.embed.weight.data = self.small * self.scale
        return super().trunk(tokens)


def build_model(run):
    return Model(run).to(run.device)


def main(run):
    train(run, build_model(run), after_step=Model.round_off)
