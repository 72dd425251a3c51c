"""Counts token pairs in the other rows of the batch."""

import numpy as np
from kit import Bigram, pair_counts, train

CAUGHT = "cheat: uses other rows"


class Model(Bigram):
    def logits(self, tokens):
        logits = np.empty((*tokens.shape, self.vocab_size), np.float32)
        known = np.exp(self.weights)
        whole = pair_counts(tokens, self.vocab_size)
        for i, row in enumerate(tokens):
            others = whole - pair_counts(row[None], self.vocab_size)
            logits[i] = np.log(known + others)[row]
        return logits


def build_model(run):
    return Model(run)


def main(run):
    train(run, build_model(run))
