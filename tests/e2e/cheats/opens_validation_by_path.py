"""Opens validation and holdout files where they are, or above, or through links."""

import os
from pathlib import Path

from kit import Bigram as build_model
from kit import attempt, train

CAUGHT = "no gain"
NEEDS_WALLS = True
DATA = "@FOLDER@/data"


def find():
    """Any file of that name anywhere."""
    found = []
    for folder, folders, files in os.walk("/"):
        folders[:] = [f for f in folders if os.path.join(folder, f) not in ("/proc", "/sys")]
        if folder.count("/") > 5 or folder.startswith("/usr"):
            folders[:] = []
        found += [f for f in files if f in ("validation.bin", "holdout.bin", "token_bytes.npy")]
    return found


def main(run):
    got = attempt(
        validation=lambda: Path(f"{DATA}/validation.bin").read_bytes(),
        holdout=lambda: Path(f"{DATA}/holdout/holdout.bin").read_bytes(),
        folder=lambda: os.listdir(DATA),
        link=lambda: os.symlink(DATA, "/tmp/data") or os.listdir("/tmp/data"),
        anywhere=find,
    )
    train(run, build_model(run), got=got)
