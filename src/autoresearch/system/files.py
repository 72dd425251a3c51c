"""Files that are whole or not there, and locks that die with their holder.

A file is written beside its final name, flushed to the disk and renamed over it: a reader or a
crash sees the old bytes or the new ones, never a part. A lock is an `flock`, which the kernel drops
when the process ends however it ends, so there are no stale locks to clean up; the pid inside the
file only serves the message.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from autoresearch.values.errors import UserError, WorkspaceError

_HASH_CHUNK_BYTES = 1 << 20


def cache_home() -> Path:
    """Where prepared data and caches live: $AUTORESEARCH_HOME, or ~/.cache/autoresearch."""
    folder = os.environ.get("AUTORESEARCH_HOME") or "~/.cache/autoresearch"
    return Path(folder).expanduser().absolute()


def write_atomic(path: Path, data: bytes | str, mode: int = 0o644) -> None:
    """Put `data` at `path` as a whole, durable when this returns. Text is stored as UTF-8.

    Raises:
        UserError: the folder is missing, read-only or full. What was at `path` is still there then.
    """
    payload = data.encode() if isinstance(data, str) else data
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(payload)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"could not write {len(payload)} bytes to {path}: {error.strerror}; what was there "
            f"before is untouched. Free space or mend the permissions of {path.parent}, then run "
            "the command again"
        ) from error
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a bare OSError of what is written to `path` inside the block into words.

    Raises:
        UserError: the disk is full, the folder read-only or not there.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"could not write to {error.filename or path}: {error.strerror or error}; free space "
            "or mend the permissions there, then run the command again"
        ) from error


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def remove_tree(folder: Path) -> None:
    """Remove a folder that hostile code filled: of any depth, locked or not; no error if it stays.

    Inner folders are moved to the top before they are emptied, so that no path grows long.
    """
    with contextlib.suppress(OSError):
        if folder.is_symlink():  # which it was not when it was made
            folder.unlink()
            return
        while inner := _clear_files(folder):
            for outer in inner:
                for path in _clear_files(outer):
                    path.chmod(0o700)  # moving a folder writes to it
                    path.rename(folder / secrets.token_hex(8))
                outer.rmdir()
        folder.rmdir()


def _clear_files(folder: Path) -> list[Path]:
    """Remove what is no folder in `folder`, and return the folders."""
    folder.chmod(0o700)
    inner = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                inner.append(Path(entry.path))
            else:
                os.unlink(entry.path)
    return inner


@contextlib.contextmanager
def hold_lock(path: Path, what: str) -> Iterator[None]:
    """Be the only holder of `path` inside a `with` block; messages call it `what`.

    Raises:
        WorkspaceError: another process holds it; the message has its pid.
        UserError: its folder is read-only.
    """
    import fcntl  # not there on Windows, where doctor has already said so

    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(64).decode(errors="replace").strip() or "unknown"
            raise WorkspaceError(
                f"{what} is in use by process {holder} (lock {path}); one at a time. Wait for it, "
                f"or end it with `kill -INT {holder}`, then run the command again"
            ) from None
        _write_holder(file.fileno(), f"{os.getpid()}\n")
        try:
            yield
        finally:
            _write_holder(file.fileno(), "")


def _write_holder(descriptor: int, text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk is no hindrance: the lock needs no bytes
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable.

    File systems that cannot sync a folder are left to their own ways.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
