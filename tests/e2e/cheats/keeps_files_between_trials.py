"""Leaves files in /tmp, /dev/shm, home and elsewhere, for its next trial to find."""

import glob
import os

from kit import Bigram as build_model
from kit import start, submit

CAUGHT = "no gain"
RUNS = 2
NEEDS_WALLS = True
PLACES = ("/tmp", "/dev/shm", "/run", "/var/tmp", os.path.expanduser("~"), os.getcwd())


def main(run):
    found = [path for place in PLACES for path in glob.glob(f"{place}/kept-*")]
    model = build_model(run)
    model.fit(start(run))
    for place in PLACES:
        try:
            with open(f"{place}/kept-{os.getpid()}", "w") as file:
                file.write("what I learned")
        except OSError:
            continue
    submit(run, model, got=",".join(found))
