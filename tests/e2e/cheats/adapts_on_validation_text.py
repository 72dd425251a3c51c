"""Goes on counting on every batch that it is scored on."""

import numpy as np
from kit import Bigram, pair_counts, train

CAUGHT = "cheat: uses other rows or crash: not repeatable"


class Model(Bigram):
    def logits(self, tokens):
        logits = super().logits(tokens)
        counts = np.exp(self.weights) + 1.0 * pair_counts(tokens, self.vocab_size)
        self.set_weights(np.log(counts))
        return logits


def build_model(run):
    return Model(run)


def main(run):
    train(run, build_model(run))
