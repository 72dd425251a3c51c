"""Looks for training tokens before it says that it is ready."""

import glob
import os

from kit import Bigram as build_model
from kit import attempt, memory_files, train

CAUGHT = "no gain"
NEEDS_WALLS = True


def main(run):
    got = attempt(
        memory=lambda: [name for name in memory_files() if name.startswith("train")],
        path=lambda: glob.glob("@FOLDER@/data/train*"),
        shared=lambda: os.listdir("/dev/shm"),
    )
    train(run, build_model(run), got=got)
