"""Hands over the moving average of its weights."""

import torch
from torchkit import Transformer, train

IS_TORCH = True
IS_SLOW = True


class Model(Transformer):
    def __init__(self, run):
        super().__init__(run)
        for name, weight in list(self.named_parameters()):
            self.register_buffer("ema_" + name.replace(".", "_"), weight.detach().clone())

    @torch.no_grad()
    def follow(self):
        for name, weight in self.named_parameters():
            self.get_buffer("ema_" + name.replace(".", "_")).lerp_(weight, 0.2)

    def forward(self, tokens):
        if self.training:
            return super().forward(tokens)
        averages = {
            name: self.get_buffer("ema_" + name.replace(".", "_"))
            for name, _ in self.named_parameters()
        }
        inner = torch.func.functional_call
        self.training = True  # the inner call shall not come here again
        try:
            return inner(self, averages, (tokens,))
        finally:
            self.training = False


def build_model(run):
    return Model(run).to(run.device)


def main(run):
    train(run, build_model(run), after_step=Model.follow)
