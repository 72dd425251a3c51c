"""Answers the first batch and claims to have answered the rest."""

from kit import Bigram, channel, train

CAUGHT = "crash: not all were written"


RUN = None


class Model(Bigram):
    def logits(self, tokens):
        logits = super().logits(tokens)
        if not self.__dict__.get("has_answered"):
            self.has_answered = True
            return logits
        end = channel(RUN)
        while True:  # in the harness's place
            end.send("done")
            end.receive()


def build_model(run):
    global RUN
    RUN = run
    return Model(run)


def main(run):
    train(run, build_model(run))
