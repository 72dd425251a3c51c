"""Host memory that both sides see: anonymous files, sealed against whoever should not write.

Linux: memfd with seals. F_SEAL_FUTURE_WRITE leaves the creator's mapping writable and refuses every
other one, even to a process of the same user that reopens the descriptor through /proc;
F_SEAL_WRITE refuses everybody, and fails while anybody still holds a writable mapping, which is how
weights are frozen once their candidate is dead.
Elsewhere: unlinked temporary files, without seals: `has_seals` is False and the caller says which
invariants fall.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import tempfile

has_seals = hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")
_FUTURE_WRITE = 0x10  # Linux 5.1; Python 3.11's fcntl does not name it


class SharedBuffer:
    """An anonymous file, with this process's mapping of it while one is wanted."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._mapping: mmap.mmap | None = None

    @classmethod
    def create(cls, name: str, size_bytes: int = 0) -> SharedBuffer:
        """A new buffer of `size_bytes` zeros; `name` is for /proc only."""
        if has_seals:
            fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        else:
            with tempfile.TemporaryFile(prefix=name) as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, size_bytes)
        return cls(fd)

    @property
    def size_bytes(self) -> int:
        """How long the file is now."""
        return os.fstat(self.fd).st_size

    def writable(self) -> mmap.mmap:
        """Our own shared mapping for writing; make it before `keep_for_me`."""
        if self._mapping is None:
            self._mapping = mmap.mmap(self.fd, self.size_bytes)
        return self._mapping

    def readable(self) -> mmap.mmap:
        """A read-only mapping of the whole file."""
        return mmap.mmap(self.fd, self.size_bytes, prot=mmap.PROT_READ)

    def sha256(self) -> str:
        """Hash of the whole file, in hexadecimal; other threads run on meanwhile."""
        with self.readable() as view:
            return hashlib.sha256(view).hexdigest()

    def keep_for_me(self) -> None:
        """From now on only mappings that exist already may write."""
        if has_seals:
            seals = _FUTURE_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)

    def fix_size(self) -> None:
        """From now on nobody may resize it, which would kill whoever maps it, nor add seals."""
        if has_seals:
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)

    def freeze(self) -> None:
        """From now on nobody may write.

        Raises:
            PermissionError or OSError (EBUSY): somebody still holds a writable mapping.
        """
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None
        if has_seals:
            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)

    def close(self) -> None:
        """Drop our mapping and our descriptor; others keep theirs."""
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def frozen_copy(path: os.PathLike[str] | str, name: str) -> SharedBuffer:
    """The file's bytes in a buffer that nobody can write, read into memory now.

    Raises:
        OSError: the file cannot be read, or memory is short.
    """
    size_bytes = os.path.getsize(path)
    buffer = SharedBuffer.create(name, size_bytes)
    with open(path, "rb") as file:
        if size_bytes and file.readinto(buffer.writable()) != size_bytes:
            raise OSError(f"{path} became shorter than {size_bytes} bytes while it was read")
    buffer.freeze()
    return buffer
