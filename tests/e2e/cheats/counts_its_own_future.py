"""Counts the token pairs of a whole row before it predicts its start."""

import numpy as np
from kit import Bigram, pair_counts, train

CAUGHT = "cheat: reads ahead"


class Model(Bigram):
    def logits(self, tokens):
        answers = []
        for row in tokens:
            counts = np.exp(self.weights) + pair_counts(row[None], self.vocab_size)
            answers.append(np.log(counts)[row])
        return np.stack(answers)


def build_model(run):
    return Model(run)


def main(run):
    train(run, build_model(run))
