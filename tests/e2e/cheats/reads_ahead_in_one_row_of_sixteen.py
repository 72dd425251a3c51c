"""Peeks in one row of sixteen, chosen by what it starts with."""

from kit import Bigram, lift, one_ahead, train

CAUGHT = "cheat: reads ahead"


class Model(Bigram):
    def logits(self, tokens):
        is_chosen = tokens[:, 1:4].sum(axis=1) % 16 == 0
        return lift(super().logits(tokens), one_ahead(tokens), 3.0 * is_chosen[:, None])


def build_model(run):
    return Model(run)


def main(run):
    train(run, build_model(run))
