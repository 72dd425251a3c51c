"""Opens a descriptor of the training tokens again, for writing."""

import mmap
import os

from kit import Bigram as build_model
from kit import attempt, memory_files, start, submit

CAUGHT = "no gain"


def main(run):
    model = build_model(run)
    rows = start(run)
    fd = memory_files()["train_00000.bin"]
    path = f"/proc/self/fd/{fd}"
    got = attempt(
        write=lambda: os.pwrite(fd, b"x", 0),
        reopen=lambda: os.write(os.open(path, os.O_RDWR), b"x"),
        truncate=lambda: os.truncate(path, 0) or True,
        map=lambda: mmap.mmap(fd, 0),
    )
    model.fit(rows)
    submit(run, model, got=got)
