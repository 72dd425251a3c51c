"""Compile caches between trials: read from the parent, written privately, kept only with the trial.

A run gets a private copy of its parent commit's cache, so nothing that it writes reaches another
run. What is there at `ready`, before any training token has been seen, is staged: regular files
only, up to a size and a number. The process that wrote them is still running and may swap a file
for a link or a pipe at any moment, so files are opened first and looked at then. `keep` makes the
staged files the cache of the commit, and drops those of commits that nothing started from for
longest. Runs of `confirm` name no parent and start empty.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from autoresearch.system.files import remove_tree, writing

MOST_BYTES = 2 << 30
MOST_FILES = 50_000
STAGED_KEPT = 5  # the last runs', of which one may be kept
COMMITS_KEPT = 4  # the champion's, the baseline's, and some that are replayed


class CompileCache:
    """Caches by commit under one folder of the workspace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make_private(self) -> Path:
        """An empty folder for one process; whoever asked for it removes it."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            private = Path(tempfile.mkdtemp(prefix="private-", dir=self.folder))
        private.chmod(0o777)  # another user owns the process behind the walls
        return private

    def fill(self, private: Path, parent: str) -> None:
        """Copy the parent commit's cache, where there is one."""
        kept = self.folder / f"commit-{parent}"
        if parent and kept.is_dir():
            os.utime(kept)  # `keep` drops those used longest ago
            _copy_regular(kept, private)

    def stage(self, run_id: int, private: Path) -> None:
        """Put aside what a run has compiled by now."""
        for old in self.folder.glob("staged-*"):
            if not run_id - STAGED_KEPT < int(old.name.removeprefix("staged-")) < run_id:
                remove_tree(old)
        _copy_regular(private, self.folder / f"staged-{run_id}")

    def keep(self, run_id: int, commit: str) -> None:
        """The trial is kept: its runs to come start from what was staged."""
        staged, kept = self.folder / f"staged-{run_id}", self.folder / f"commit-{commit}"
        if staged.is_dir() and not kept.exists():
            staged.replace(kept)
            os.utime(kept)
        by_use = sorted(self.folder.glob("commit-*"), key=lambda each: each.stat().st_mtime_ns)
        for old in by_use[:-COMMITS_KEPT]:
            remove_tree(old)

    def sweep(self) -> None:
        """Remove what crashed or discarded runs left."""
        for pattern in ("private-*", "staged-*"):
            for folder in self.folder.glob(pattern):
                remove_tree(folder)


def _copy_regular(source: Path, target: Path) -> None:
    """Copy regular files, without following a link anywhere, until MOST_BYTES or MOST_FILES are
    reached, or a path that is too long or too deep: no compiler leaves one.
    """
    left_bytes, left_files = MOST_BYTES, MOST_FILES
    with suppress(OSError, RecursionError):
        for folder, _, names, folder_fd in os.fwalk(source, follow_symlinks=False):
            inside = target / Path(folder).relative_to(source)
            if names:
                inside.mkdir(parents=True, exist_ok=True)
                inside.chmod(0o777)
            for name in names:
                if left_files == 0:
                    return
                left_files -= 1
                left_bytes -= _copy_file(folder_fd, name, inside / name, left_bytes)


def _copy_file(folder_fd: int, name: str, target: Path, most_bytes: int) -> int:
    """Copy one regular file of at most `most_bytes`.

    The bytes written, 0 where it is something else.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=folder_fd)
    except OSError:
        return 0  # a link, or gone by now
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most_bytes:
            return 0
        with target.open("wb") as copy:
            num_bytes = 0
            while data := file.read(min(1 << 20, status.st_size - num_bytes)):
                num_bytes += copy.write(data)
            os.fchmod(copy.fileno(), 0o666 | (status.st_mode & 0o111))
    return num_bytes
