"""The parent with another seed, hoping for luck."""

from kit import Bigram as build_model
from kit import train

CAUGHT = "refused: nothing changed but a seed"
SEED = 2


def main(run):
    train(run, build_model(run))
