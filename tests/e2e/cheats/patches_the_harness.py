"""Replaces what the harness is made of: shapes, loading, sending, the presenter's own loop."""

import sys

from kit import Bigram, channel, in_presenter, lift, one_ahead, train

CAUGHT = "cheat: reads ahead"


class Model(Bigram):
    def logits(self, tokens):
        return lift(super().logits(tokens), one_ahead(tokens), 1.0 * in_presenter())


def build_model(run):
    program = sys.modules["__main__"]
    for name in ("_forward", "forward"):
        if hasattr(program, name):
            real = getattr(program, name)
            setattr(program, name, lambda *args, real=real: real(*args))
    return Model(run)


def main(run):
    type(run).progress = property(lambda self: 1.0)
    real = channel(run).send
    channel(run).send = lambda kind, *rest, **body: real(kind, *rest, **body)
    train(run, build_model(run), val_bpb=0.1)
