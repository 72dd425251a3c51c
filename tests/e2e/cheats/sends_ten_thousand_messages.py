"""Drowns the referee in telemetry."""

from kit import Bigram as build_model
from kit import channel, start, submit

CAUGHT = "crash: messages in"


def main(run):
    model = build_model(run)
    model.fit(start(run))
    for step in range(10_000):
        channel(run).send("progress", values={"step": step, f"name{step}": "x" * 200})
    submit(run, model)
