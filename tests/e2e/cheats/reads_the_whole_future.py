"""Prefers whatever stands anywhere later in the row."""

import numpy as np
from kit import Bigram, train

CAUGHT = "cheat: reads ahead"


class Model(Bigram):
    def logits(self, tokens):
        logits = np.array(super().logits(tokens))
        later = np.zeros((len(tokens), self.vocab_size), np.float32)
        for t in range(tokens.shape[1] - 2, -1, -1):
            np.put_along_axis(later, tokens[:, t + 1, None], 1.0, axis=1)
            logits[:, t] += later
        return logits


def build_model(run):
    return Model(run)


def main(run):
    train(run, build_model(run))
