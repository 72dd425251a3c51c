"""Shared memory and who may write it."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from autoresearch.wire import buffer as buffer_module
from autoresearch.wire.buffer import SharedBuffer, frozen_copy

sealed = pytest.mark.skipif(not buffer_module.has_seals, reason="needs Linux's sealed memfds")


def test_a_buffer_is_zeros_and_what_we_write_is_read() -> None:
    """Writable and readable mappings show the same bytes."""
    buffer = SharedBuffer.create("test", 4096)
    assert buffer.size_bytes == 4096
    buffer.writable()[:5] = b"hello"
    with buffer.readable() as view:
        assert view[:6] == b"hello\0"
    buffer.close()
    buffer.close()
    assert buffer.fd == -1


@sealed
def test_kept_for_me_means_that_only_the_old_mapping_writes() -> None:
    """The owner still writes; new mappings, pwrite and a reopened descriptor do not."""
    buffer = SharedBuffer.create("test", 4096)
    ours = buffer.writable()
    buffer.keep_for_me()
    ours[:2] = b"ok"
    with pytest.raises(PermissionError):
        mmap.mmap(buffer.fd, 4096)
    with pytest.raises(PermissionError):
        os.pwrite(buffer.fd, b"x", 0)
    again = os.open(f"/proc/self/fd/{buffer.fd}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.write(again, b"x")
    with pytest.raises(PermissionError):
        mmap.mmap(again, 4096)
    with pytest.raises(PermissionError):
        os.ftruncate(again, 0)
    os.close(again)
    with buffer.readable() as view:
        assert view[:2] == b"ok"
    buffer.close()


@sealed
def test_frozen_bytes_are_written_by_nobody() -> None:
    """Neither the owner nor anybody else; not even the size changes."""
    buffer = SharedBuffer.create("test", 4096)
    buffer.writable()[:5] = b"final"
    buffer.freeze()
    with pytest.raises(PermissionError):
        buffer.writable()
    with pytest.raises(PermissionError):
        os.pwrite(buffer.fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(buffer.fd, 1)
    with buffer.readable() as view:
        assert view[:5] == b"final"
    buffer.close()


@sealed
def test_freezing_fails_while_somebody_else_can_write() -> None:
    """A mapping that outlived its process would be noticed here."""
    buffer = SharedBuffer.create("test", 4096)
    with mmap.mmap(buffer.fd, 4096), pytest.raises(OSError, match="busy"):
        buffer.freeze()
    buffer.freeze()
    buffer.close()


@sealed
def test_a_fixed_size_stays_and_takes_no_more_seals() -> None:
    """A presenter can write the logits, but neither pull them away nor lock out the next one."""
    buffer = SharedBuffer.create("test", 4096)
    buffer.fix_size()
    os.pwrite(buffer.fd, b"x", 0)
    for size_bytes in (0, 8192):
        with pytest.raises(PermissionError):
            os.ftruncate(buffer.fd, size_bytes)
    with pytest.raises(PermissionError):
        buffer.keep_for_me()
    buffer.close()


def test_a_frozen_copy_has_the_bytes_of_the_file(tmp_path: Path) -> None:
    """Also of an empty one."""
    path = tmp_path / "shard.bin"
    for content in (b"", bytes(range(256)) * 40):
        path.write_bytes(content)
        buffer = frozen_copy(path, "shard")
        assert buffer.size_bytes == len(content)
        assert os.pread(buffer.fd, 1 << 20, 0) == content
        buffer.close()


def test_a_file_that_shrinks_while_it_is_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a shard is never taken for a whole one."""
    path = tmp_path / "shard.bin"
    path.write_bytes(b"short")
    monkeypatch.setattr(os.path, "getsize", lambda _: 4096)
    with pytest.raises(OSError, match="became shorter"):
        frozen_copy(path, "shard")


def test_without_seals_buffers_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere than on Linux it is an unlinked temporary file."""
    monkeypatch.setattr(buffer_module, "has_seals", False)
    buffer = SharedBuffer.create("test", 16)
    buffer.writable()[:3] = b"abc"
    buffer.keep_for_me()
    buffer.fix_size()
    buffer.freeze()
    with buffer.readable() as view:
        assert view[:4] == b"abc\0"
    buffer.close()
