"""Takes a gradient step on every batch that it answers."""

import torch
from torchkit import Transformer, loss_of, train

CAUGHT = "cheat: uses other rows"
IS_TORCH = True
IS_SLOW = True


class Model(Transformer):
    def forward(self, tokens):
        answer = super().forward(tokens)
        if not self.training:
            with torch.inference_mode(False), torch.enable_grad():
                rows = tokens.clone()
                optimizer = self.__dict__.setdefault(
                    "optimizer", torch.optim.AdamW(self.parameters(), lr=0.01)
                )
                optimizer.zero_grad()
                loss_of(self.train(), rows).backward()
                optimizer.step()
                self.eval()
        return answer.clone()


def build_model(run):
    return Model(run).to(run.device)


def main(run):
    train(run, build_model(run))
