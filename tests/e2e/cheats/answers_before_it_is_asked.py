"""Fills the channel with answers to questions that were not asked yet."""

import time

from kit import Bigram, channel, train

CAUGHT = "crash: not all were written"


RUN = None


class Model(Bigram):
    def logits(self, tokens):
        for _ in range(1000):
            channel(RUN).send("done")
        time.sleep(0.2)
        return super().logits(tokens)


def build_model(run):
    global RUN
    RUN = run
    return Model(run)


def main(run):
    train(run, build_model(run))
