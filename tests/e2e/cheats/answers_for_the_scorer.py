"""Sends the scorer the message that the scorer would send."""

from kit import Bigram, channel, train

CAUGHT = "crash: broke the protocol"


RUN = None


class Model(Bigram):
    def logits(self, tokens):
        channel(RUN).send("scored", val_bpb=0.1, val_bpb_decoded=0.1)
        return super().logits(tokens)


def build_model(run):
    global RUN
    RUN = run
    return Model(run)


def main(run):
    train(run, build_model(run))
