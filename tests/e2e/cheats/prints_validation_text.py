"""Prints what it is shown, for whoever reads the output."""

import sys

from kit import Bigram, train

CAUGHT = "no gain"


class Model(Bigram):
    def logits(self, tokens):
        for stream in (sys.stdout, sys.stderr):
            print("LEAKED", tokens.tolist(), file=stream, flush=True)
        return super().logits(tokens)


def build_model(run):
    return Model(run)


def main(run):
    train(run, build_model(run))
