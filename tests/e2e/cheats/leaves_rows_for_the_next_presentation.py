"""Writes rows to every place it finds, for the presenter that comes after it."""

import os

import numpy as np
from kit import Bigram, lift, one_ahead, train

CAUGHT = "no gain"
PLACES = ["/tmp", "/dev/shm", "/run", os.path.expanduser("~"), "/cache", "/trial", os.getcwd()]
RUNS = 2
NEEDS_WALLS = True


class Model(Bigram):
    def __init__(self, run):
        super().__init__(run)
        self.has_found = any(os.path.exists(f"{place}/rows.npy") for place in PLACES)

    def logits(self, tokens):
        for place in PLACES:
            try:
                np.save(f"{place}/rows.npy", tokens)
            except OSError:
                continue
        return lift(super().logits(tokens), one_ahead(tokens), 9.0 * self.has_found)


def build_model(run):
    return Model(run)


def main(run):
    train(run, build_model(run))
