"""A command on a leash ends when the other end is let go, and takes its children with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from autoresearch.system import leash

CHILD = "import subprocess, sys, time; " + (
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
    "start_new_session=True); open({!r}, 'w').close(); time.sleep(600)"
)


RUNAWAY = """
import os, sys, time
end = os.open(sys.argv[1], os.O_WRONLY)  # which every descendant holds
if os.fork():
    time.sleep(600)
while True:
    if os.fork():
        os._exit(0)
"""


def start(folder: Path, *command: str) -> tuple[subprocess.Popen[bytes], int]:
    """The leash and our end of it."""
    theirs, ours = os.pipe()
    argv = [sys.executable, "-I", leash.__file__, str(theirs), str(folder), *command]
    process = subprocess.Popen(argv, pass_fds=[theirs])
    os.close(theirs)
    return process, ours


def test_the_exit_code_is_the_commands(tmp_path: Path) -> None:
    """The folder stays; a program that is not there gives 127."""
    process, ours = start(tmp_path, sys.executable, "-c", "raise SystemExit(7)")
    assert process.wait(60) == 7
    os.close(ours)
    process, ours = start(tmp_path, "/no/such/program")
    assert process.wait(60) == 127
    os.close(ours)
    assert tmp_path.is_dir()


def test_letting_go_ends_everybody(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """As the kernel does for us at kill -9; the folder goes too, however deep it is."""
    place = tmp_path / "place"
    place.mkdir()
    # where this fails pytest would have to remove it, recurses, and stumbles in all later sessions
    request.addfinalizer(lambda: subprocess.run(["rm", "-rf", place], check=False))
    inner = os.open(place, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=inner)
        outer, inner = inner, os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(outer)
    os.close(inner)
    flag = tmp_path / "begun"
    process, ours = start(place, sys.executable, "-c", CHILD.format(str(flag)))
    limit = time.monotonic() + 60
    while not flag.exists():
        assert time.monotonic() < limit
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 2
    os.close(ours)
    assert process.wait(60) == 1
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert not place.exists()


def test_what_forks_ahead_is_caught(tmp_path: Path) -> None:
    """A chain that takes a new process id all the time is gone when no one holds its pipe."""
    os.mkfifo(tmp_path / "pipe")
    end = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)

    def is_held() -> bool:
        try:
            return os.read(end, 1) != b""
        except BlockingIOError:
            return True

    place = tmp_path / "place"
    place.mkdir()
    process, ours = start(place, sys.executable, "-c", RUNAWAY, str(tmp_path / "pipe"))
    limit = time.monotonic() + 60
    while not is_held():
        assert time.monotonic() < limit
        time.sleep(0.02)
    time.sleep(0.2)
    os.close(ours)
    assert process.wait(60) == 1
    assert not is_held()
    os.close(end)
