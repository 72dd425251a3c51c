"""Peeks only at positions above 1,000."""

import numpy as np
from kit import Bigram, lift, one_ahead, train

CAUGHT = "cheat: reads ahead"
CONTEXT = 1200


class Model(Bigram):
    def logits(self, tokens):
        is_late = np.arange(tokens.shape[1]) > 1000
        return lift(super().logits(tokens), one_ahead(tokens), 2.0 * is_late)


def build_model(run):
    return Model(run)


def main(run):
    train(run, build_model(run))
