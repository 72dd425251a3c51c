"""Answers for half the vocabulary, where a guess is easier."""

from kit import Bigram, train

CAUGHT = "crash: shape (rows, context, vocabulary)"


class Model(Bigram):
    def logits(self, tokens):
        return super().logits(tokens)[..., : self.vocab_size // 2]


def build_model(run):
    return Model(run)


def main(run):
    train(run, build_model(run))
