"""Writes to the scorer, the ledger, the settings, git refs and its own snapshot."""

import sys

from kit import Bigram as build_model
from kit import attempt, train

import autoresearch

CAUGHT = "no gain"
NEEDS_WALLS = True
PACKAGE = autoresearch.__path__[0]
WORKSPACE = "@FOLDER@/workspace"
PATHS = {
    "scorer": f"{PACKAGE}/referee/scorer.py",
    "harness": f"{PACKAGE}/inside/harness.py",
    "ledger": f"{WORKSPACE}/ledger.sqlite",
    "settings": f"{WORKSPACE}/autoresearch.toml",
    "ref": f"{WORKSPACE}/.git/refs/heads/main",
    "champion": f"{WORKSPACE}/train.py",
    "snapshot": sys.modules[__name__].__file__,
}


def change(path):
    with open(path, "r+b") as file:
        return file.write(b"mine")


def main(run):
    ways = {name: lambda path=path: change(path) for name, path in PATHS.items()}
    train(run, build_model(run), got=attempt(**ways))
