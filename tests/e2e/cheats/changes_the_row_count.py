"""Answers for the first row only."""

from kit import Bigram, train

CAUGHT = "crash: shape (rows, context, vocabulary)"


class Model(Bigram):
    def logits(self, tokens):
        return super().logits(tokens)[:1]


def build_model(run):
    return Model(run)


def main(run):
    train(run, build_model(run))
