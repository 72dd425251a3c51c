"""Compile caches between trials: read from the parent commit, written to a private layer, kept only with the trial.

A run gets a private copy of its parent's cache, so nothing that it writes reaches another run. What is there at `ready`,
before any training token has been seen, is staged: regular files only, up to a size. `keep` makes the staged files the
cache of the commit; `drop` forgets them. Runs of `confirm` name no parent and start empty.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOST_BYTES = 2 << 30


class CompileCache:
    """Caches by commit under one folder of the workspace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def private(self, parent: str) -> Iterator[Path]:
        """A writable copy of the parent commit's cache that is destroyed afterwards; empty where there is none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        private = Path(tempfile.mkdtemp(prefix="private-", dir=self.folder))
        try:
            kept = self.folder / f"commit-{parent}"
            if parent and kept.is_dir():
                _copy_regular(kept, private)
            private.chmod(0o777)  # another user owns the process behind the walls
            yield private
        finally:
            shutil.rmtree(private, ignore_errors=True)

    def stage(self, run_id: int, private: Path) -> None:
        """Put aside what a run has compiled by now."""
        staged = self.folder / f"staged-{run_id}"
        shutil.rmtree(staged, ignore_errors=True)
        if any(private.iterdir()):
            _copy_regular(private, staged)

    def keep(self, run_id: int, commit: str) -> None:
        """The trial is kept: its runs to come start from what was staged."""
        staged, kept = self.folder / f"staged-{run_id}", self.folder / f"commit-{commit}"
        if staged.is_dir() and not kept.exists():
            staged.replace(kept)

    def sweep(self) -> None:
        """Remove what crashed or discarded runs left."""
        for pattern in ("private-*", "staged-*"):
            for folder in self.folder.glob(pattern):
                shutil.rmtree(folder, ignore_errors=True)


def _copy_regular(source: Path, target: Path) -> None:
    """Copy regular files, without following a link, until MOST_BYTES are reached."""
    left = MOST_BYTES
    for folder, names, files in os.walk(source, followlinks=False):
        names[:] = [name for name in names if not Path(folder, name).is_symlink()]
        inside = target / Path(folder).relative_to(source)
        inside.mkdir(parents=True, exist_ok=True)
        inside.chmod(0o777)
        for name in files:
            path = Path(folder, name)
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_size > left:
                continue
            left -= status.st_size
            shutil.copyfile(path, inside / name, follow_symlinks=False)
            (inside / name).chmod(0o666 | (status.st_mode & 0o111))
