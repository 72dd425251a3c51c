"""Gives an honest answer, then rewrites the logits while they are read."""

import mmap
import threading
import time

import numpy as np
from kit import Bigram, lift, memory_files, one_ahead, train

CAUGHT = "no gain or cheat: reads ahead or cheat: it uses other rows or crash: repeatable"


class Model(Bigram):
    def logits(self, tokens):
        logits = super().logits(tokens)
        if not self.__dict__.get("view"):
            self.view = mmap.mmap(memory_files()["logits"], 0)
        better = lift(logits, one_ahead(tokens), 9.0).astype(np.float32).tobytes()

        def rewrite():
            time.sleep(0.001)
            self.view[: len(better)] = better

        threading.Thread(target=rewrite).start()
        return logits


def build_model(run):
    return Model(run)


def main(run):
    train(run, build_model(run))
