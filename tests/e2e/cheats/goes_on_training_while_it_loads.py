"""Brings its training tokens along as weights and goes on training before it says `ready`."""

import time

from kit import Bigram, in_presenter, train

CAUGHT = "timeout: not loaded for scoring within"
SCORING_LIMIT_S = 3.0


def build_model(run):
    if in_presenter():
        time.sleep(20.0)  # as good as training
    return Bigram(run)


def main(run):
    train(run, build_model(run))
