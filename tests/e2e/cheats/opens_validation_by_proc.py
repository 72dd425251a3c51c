"""Looks for validation rows in /proc: descriptors, roots, mappings and memory of others."""

import glob
import os

from kit import Bigram as build_model
from kit import attempt, train

CAUGHT = "no gain"
NEEDS_WALLS = True
DATA = "@FOLDER@/data"
OWN = ("self", "thread-self", str(os.getpid()))


def others(pattern):
    return [p for p in glob.glob(f"/proc/{pattern}") if p.split("/")[2] not in OWN]


def is_wall(path):
    """Whether it is the sandbox's own first process, which knows nothing."""
    with open(path.replace("/mem", "/cmdline"), "rb") as file:
        return b"bwrap" in file.read()


def readable(pattern):
    """Files of other processes that hold or name the data."""
    found = []
    for path in others(pattern):
        try:
            with open(path, "rb") as file:
                found += [path] if b"validation" in file.read(1 << 20) else []
        except OSError:
            continue
    return found


def main(run):
    got = attempt(
        descriptors=lambda: [p for p in others("*/fd/*") if "data" in os.readlink(p)],
        roots=lambda: [p for p in others("*/root") if os.path.exists(p + DATA)],
        mappings=lambda: readable("*/maps"),
        command=lambda: readable("*/cmdline"),
        memory=lambda: [p for p in others("*/mem") if not is_wall(p) and os.open(p, os.O_RDONLY)],
    )
    train(run, build_model(run), got=got)
