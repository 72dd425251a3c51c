"""Looks through every inherited descriptor for validation rows."""

import os
import stat

from kit import Bigram as build_model
from kit import attempt, memory_files, start, submit

CAUGHT = "no gain"
NEEDS_WALLS = True


def main(run):
    model = build_model(run)
    rows = start(run)
    strangers = []
    for name in os.listdir("/proc/self/fd"):
        try:
            mode = os.fstat(int(name)).st_mode
        except OSError:
            continue
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            strangers.append(os.readlink("/proc/self/fd/" + name))
    known = ("/memfd:weights", "/memfd:train_", "/proc/", "/dev/", "/usr/", "/tmp/")
    model.fit(rows)
    got = attempt(
        files=lambda: [path for path in strangers if not path.startswith(known)],
        memory=lambda: set(memory_files()) & {"validation", "holdout", "tokens", "logits"},
    )
    submit(run, model, got=got)
