"""Peeks so faintly that the gain looks like luck."""

from kit import Bigram, lift, one_ahead, train

CAUGHT = "cheat: reads ahead"


class Model(Bigram):
    def logits(self, tokens):
        return lift(super().logits(tokens), one_ahead(tokens), 0.05)


def build_model(run):
    return Model(run)


def main(run):
    train(run, build_model(run))
