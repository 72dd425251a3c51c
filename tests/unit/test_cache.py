"""Compile caches: private while a run lasts, staged at `ready`, kept with a kept trial."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autoresearch.referee import cache as cache_module
from autoresearch.referee.cache import CompileCache


@pytest.fixture
def cache(tmp_path: Path) -> CompileCache:
    """An empty cache."""
    return CompileCache(tmp_path / "cache")


@contextmanager
def private_copy(cache: CompileCache, parent: str) -> Iterator[Path]:
    """A run's folder, filled from its parent's cache, destroyed afterwards."""
    folder = cache.make_private()
    try:
        cache.fill(folder, parent)
        yield folder
    finally:
        shutil.rmtree(folder)


def keep(cache: CompileCache, run_id: int, commit: str, **files: str) -> None:
    """A run that wrote `files` and was kept."""
    with private_copy(cache, "") as private:
        for name, text in files.items():
            (private / name).write_text(text)
        cache.stage(run_id, private)
    cache.keep(run_id, commit)


def test_a_child_starts_from_what_its_parent_compiled(cache: CompileCache) -> None:
    """A copy: what a run writes reaches neither the parent's cache nor another run's."""
    keep(cache, 1, "parent", kernel="compiled")
    with private_copy(cache, "parent") as ours, private_copy(cache, "parent") as other:
        assert (ours / "kernel").read_text() == "compiled"
        (ours / "kernel").write_text("spoiled")
        assert (other / "kernel").read_text() == "compiled"
    assert not ours.exists()
    with private_copy(cache, "parent") as again:
        assert (again / "kernel").read_text() == "compiled"


def test_no_parent_or_an_unknown_one_is_an_empty_cache(cache: CompileCache) -> None:
    """As both arms of a confirmation start."""
    keep(cache, 1, "parent", kernel="compiled")
    for parent in ("", "unknown"):
        with private_copy(cache, parent) as private:
            assert list(private.iterdir()) == []


def test_only_what_was_there_when_staged_is_kept(cache: CompileCache) -> None:
    """What is written after `ready` may carry training data and is not taken."""
    with private_copy(cache, "") as private:
        (private / "early").write_text("1")
        cache.stage(7, private)
        (private / "late").write_text("2")
    cache.keep(7, "commit")
    with private_copy(cache, "commit") as again:
        assert [path.name for path in again.iterdir()] == ["early"]


def test_links_and_pipes_are_not_taken(cache: CompileCache, tmp_path: Path) -> None:
    """Neither a link to a file, nor to a folder, nor a pipe that would block who opens it."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "text").write_text("validation")
    (secret / "text").chmod(0o600)
    with private_copy(cache, "") as private:
        (private / "folder").mkdir()
        (private / "folder" / "kernel").write_text("compiled")
        (private / "folder" / "kernel").chmod(0o755)
        (private / "link").symlink_to(secret / "text")
        (private / "linked").symlink_to(secret)
        os.mkfifo(private / "pipe")
        cache.stage(1, private)
    cache.keep(1, "commit")
    with private_copy(cache, "commit") as again:
        assert sorted(str(p.relative_to(again)) for p in again.rglob("*")) == [
            "folder",
            "folder/kernel",
        ]
        assert os.access(again / "folder" / "kernel", os.X_OK)
    assert (secret / "text").stat().st_mode & 0o777 == 0o600


def test_a_file_swapped_for_a_link_while_it_is_staged_is_not_followed(
    cache: CompileCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the listing and the opening the candidate may do anything."""
    secret = tmp_path / "secret"
    secret.write_text("validation")
    secret.chmod(0o600)
    real_open = os.open

    def swap_then_open(path: str, flags: int, *args: object, **kwargs: object) -> int:
        if path == "kernel":
            (private / "kernel").unlink()
            (private / "kernel").symlink_to(secret)
        return real_open(path, flags, *args, **kwargs)

    with private_copy(cache, "") as private:
        (private / "kernel").write_text("compiled")
        monkeypatch.setattr(cache_module.os, "open", swap_then_open)
        cache.stage(1, private)
        monkeypatch.undo()
    staged = cache.folder / "staged-1"
    assert not any("validation" in p.read_text() for p in staged.rglob("*") if p.is_file())
    assert not any(p.is_symlink() for p in staged.rglob("*"))
    assert secret.stat().st_mode & 0o777 == 0o600


def test_size_and_number_are_capped(cache: CompileCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is left out; a file that fits after it is taken."""
    monkeypatch.setattr(cache_module, "MOST_BYTES", 10)
    monkeypatch.setattr(cache_module, "MOST_FILES", 3)
    with private_copy(cache, "") as private:
        (private / "large").write_text("x" * 11)
        (private / "small").write_text("x" * 4)
        cache.stage(1, private)
        assert [p.name for p in (cache.folder / "staged-1").iterdir()] == ["small"]
        for i in range(6):
            (private / f"tiny{i}").write_text("")
        cache.stage(1, private)
    assert len(list((cache.folder / "staged-1").iterdir())) <= 3


def test_an_empty_cache_is_not_staged_and_keeping_is_done_once(cache: CompileCache) -> None:
    """A commit's first kept cache stays."""
    with private_copy(cache, "") as private:
        cache.stage(1, private)
    cache.keep(1, "commit")
    assert not (cache.folder / "commit-commit").exists()
    keep(cache, 2, "commit", kernel="first")
    keep(cache, 3, "commit", kernel="second")
    with private_copy(cache, "commit") as again:
        assert (again / "kernel").read_text() == "first"


def test_caches_of_old_commits_are_dropped(
    cache: CompileCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night of keeps leaves a few; what runs still start from stays, however old it is."""
    hours, utime = itertools.count(1), os.utime
    monkeypatch.setattr(cache_module.os, "utime", lambda path: utime(path, (0, 3600 * next(hours))))
    keep(cache, 1, "baseline", kernel="compiled")
    for run_id in range(2, 31):
        with private_copy(cache, "baseline"):
            pass
        keep(cache, run_id, f"c{run_id}", kernel="compiled")
    left = {path.name for path in cache.folder.glob("commit-*")}
    assert left == {"commit-baseline", "commit-c28", "commit-c29", "commit-c30"}


def test_sweeping_leaves_only_kept_caches(cache: CompileCache) -> None:
    """What a killed session left goes."""
    keep(cache, 1, "commit", kernel="compiled")
    for name in ("private-dead", "staged-9"):
        (cache.folder / name).mkdir()
    cache.sweep()
    assert [path.name for path in cache.folder.iterdir()] == ["commit-commit"]
