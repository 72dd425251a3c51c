"""Whole files and locks."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoresearch.system.files import (
    cache_home,
    hold_lock,
    sha256_file,
    write_atomic,
    writing,
)
from autoresearch.values.errors import UserError, WorkspaceError


@given(data=st.one_of(st.binary(max_size=300), st.text(max_size=100)))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_write_atomic_stores_exactly_the_bytes(tmp_path: Path, data: bytes | str) -> None:
    """Text keeps its newlines, bytes are bytes, and no temporary file stays behind."""
    path = tmp_path / "file"
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogatepass").decode("utf-8", "ignore")
    write_atomic(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".file")] == []


def test_write_atomic_sets_the_mode(tmp_path: Path) -> None:
    """The sealed holdout is written for its owner alone."""
    write_atomic(tmp_path / "sealed", b"x", mode=0o600)
    assert stat.S_IMODE((tmp_path / "sealed").stat().st_mode) == 0o600


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the flush fails, the old text stays, the temporary file goes, the message says what to
    do.
    """
    path = tmp_path / "file"
    write_atomic(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"could not write 3 bytes to .*No space left.*Free space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """Writing into a folder that is not there is the person's to mend."""
    with pytest.raises(UserError, match="No such file or directory"):
        write_atomic(tmp_path / "no" / "file", "x")


def test_sha256_file(tmp_path: Path) -> None:
    """The digest covers files larger than one chunk."""
    data = os.urandom((1 << 20) + 7)
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_cache_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment variable wins, and an empty one counts as unset."""
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path))
    assert cache_home() == tmp_path
    monkeypatch.setenv("AUTORESEARCH_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_home() == tmp_path / ".cache" / "autoresearch"


def test_second_holder_is_told_the_pid_of_the_first(tmp_path: Path) -> None:
    """Two sessions on one workspace: the second stops with the first one's pid."""
    path = tmp_path / "deep" / "lock"
    told = rf"the workspace is in use by process {os.getpid()} \(lock {path}\)"
    with (
        hold_lock(path, "the workspace"),
        pytest.raises(WorkspaceError, match=told),
        hold_lock(path, "the workspace"),
    ):
        pass
    with hold_lock(path, "the workspace"):
        pass


def test_a_lock_that_cannot_be_made_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only workspace is no traceback."""

    def fail(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "open", fail)
    told = r"could not write to .*/lock: Read-only file system; free space or mend the permissions"
    with pytest.raises(UserError, match=told), hold_lock(tmp_path / "lock", "it"):
        pass


def test_writing_names_the_place_where_the_error_does_not(tmp_path: Path) -> None:
    """A full disk is found by `write`, which knows no path."""
    with (
        pytest.raises(UserError, match=f"could not write to {tmp_path}: No space left on device;"),
        writing(tmp_path),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    """`kill -9` of the holder leaves nothing to clean up."""
    code = (
        "import sys, os; from pathlib import Path; from autoresearch.system.files import "
        "hold_lock\n"
        "with hold_lock(Path(sys.argv[1]), 'it'):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    source = Path(__file__).parents[2] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(WorkspaceError, match=f"process {holder.pid}"),
            hold_lock(tmp_path / "lock", "it"),
        ):
            pass
        holder.kill()
        holder.wait()
    with hold_lock(tmp_path / "lock", "it"):
        pass
