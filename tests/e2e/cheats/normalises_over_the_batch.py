"""Normalises with the statistics of the batch that it is scored on."""

from torchkit import Transformer, train

CAUGHT = "cheat: uses other rows"
IS_TORCH = True
IS_SLOW = True


class Model(Transformer):
    def forward(self, tokens):
        x = self.trunk(tokens)
        mean, spread = x.mean(dim=(0, 1)), x.std(dim=(0, 1))  # the future and other rows are in
        return self.head((x - mean) / spread)


def build_model(run):
    return Model(run).to(run.device)


def main(run):
    train(run, build_model(run))
