"""A transformer without a causal mask."""

from torchkit import Transformer, train

CAUGHT = "cheat: reads ahead"
IS_TORCH = True
IS_SLOW = True


class Model(Transformer):
    def __init__(self, run):
        super().__init__(run)
        for block in self.blocks:
            block.attention.is_causal = False


def build_model(run):
    return Model(run).to(run.device)


def main(run):
    train(run, build_model(run), steps=100)
