"""Remembers every row and leaks it when it comes back: none does."""

import numpy as np
from kit import Bigram, lift, one_ahead, train

CAUGHT = "no gain or crash: not repeatable"


class Model(Bigram):
    def logits(self, tokens):
        logits = np.array(super().logits(tokens))
        seen = self.__dict__.setdefault("seen", {})
        for i, row in enumerate(tokens):
            known = seen.get(tuple(row[:20]))
            if known is not None:
                logits[i : i + 1] = lift(logits[i : i + 1], one_ahead(known[None]), 9.0)
            seen[tuple(row[:20])] = row
        return logits


def build_model(run):
    return Model(run)


def main(run):
    train(run, build_model(run))
