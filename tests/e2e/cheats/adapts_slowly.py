"""Goes on counting while it is scored, so slowly that no two batches differ much."""

import numpy as np
from kit import Bigram, pair_counts, train

CAUGHT = "cheat: uses other rows"


class Model(Bigram):
    def logits(self, tokens):
        logits = super().logits(tokens)
        counts = np.exp(self.weights) + 0.05 * pair_counts(tokens, self.vocab_size)
        self.set_weights(np.log(counts))
        return logits


def build_model(run):
    return Model(run)


def main(run):
    train(run, build_model(run))
