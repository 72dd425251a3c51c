"""Adds so much to all logits that float32 forgets what the others were."""

from kit import Bigram, train

CAUGHT = "no gain"


class Model(Bigram):
    def logits(self, tokens):
        return super().logits(tokens) + 1e9


def build_model(run):
    return Model(run)


def main(run):
    train(run, build_model(run))
