"""Hopes that a score of NaN is not worse than any other."""

import numpy as np
from kit import Bigram, train

CAUGHT = "crash: NaN or infinite"


class Model(Bigram):
    def logits(self, tokens):
        return super().logits(tokens) * np.where(tokens == 5, np.nan, 1.0)[..., None]


def build_model(run):
    return Model(run)


def main(run):
    train(run, build_model(run))
