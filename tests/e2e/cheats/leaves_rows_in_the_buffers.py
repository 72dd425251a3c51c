"""Keeps writing rows into the shared buffers after its last answer."""

import os
from contextlib import suppress

from kit import Bigram, lift, memory_files, one_ahead, train

CAUGHT = "no gain"
RUNS = 2


class Model(Bigram):
    def logits(self, tokens):
        logits = super().logits(tokens)
        if not self.__dict__.get("is_scribbling"):
            self.is_scribbling = True
            if os.listxattr(memory_files()["tokens"]):
                return lift(logits, one_ahead(tokens), 9.0)
            with suppress(OSError):
                os.setxattr(memory_files()["tokens"], "user.rows", tokens.tobytes()[:100])
        return logits


def build_model(run):
    return Model(run)


def main(run):
    train(run, build_model(run))
