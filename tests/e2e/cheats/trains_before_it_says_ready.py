"""Says `submit` before `ready`, to be scored for time that was never counted."""

from kit import Bigram as build_model
from kit import channel, train

CAUGHT = "no gain"


def main(run):
    model = build_model(run)
    channel(run).send("submit", size_bytes=4, facts={"val_bpb": 0.1})
    train(run, model)
