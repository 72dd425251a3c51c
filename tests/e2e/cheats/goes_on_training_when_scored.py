"""Brings work along in its weights, to be done in the process that answers."""

import time

from kit import Bigram, train

CAUGHT = "timeout: scoring took longer"
SCORING_LIMIT_S = 6.0


class Model(Bigram):
    def logits(self, tokens):
        time.sleep(1.0)  # as good as a training step on tokens that came with the weights
        return super().logits(tokens)


def build_model(run):
    return Model(run)


def main(run):
    train(run, build_model(run))
