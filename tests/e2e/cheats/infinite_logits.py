"""Is infinitely sure of one token."""

import numpy as np
from kit import Bigram, train

CAUGHT = "crash: NaN or infinite"


class Model(Bigram):
    def logits(self, tokens):
        logits = np.array(super().logits(tokens))
        logits[..., 7] = np.inf
        return logits


def build_model(run):
    return Model(run)


def main(run):
    train(run, build_model(run))
