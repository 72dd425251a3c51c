"""Peeks only where the row is one long document."""

from kit import Bigram, lift, one_ahead, train

CAUGHT = "cheat: reads ahead"
BOS = 0


class Model(Bigram):
    def logits(self, tokens):
        is_long = (tokens[:, 1:] != BOS).all(axis=1)
        return lift(super().logits(tokens), one_ahead(tokens), 2.0 * is_long[:, None])


def build_model(run):
    return Model(run)


def main(run):
    train(run, build_model(run))
