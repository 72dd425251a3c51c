"""Child processes with everything that they ever start, and a kill that leaves nobody.

A tree is killed by walking it while it is still connected, then by sweeping for orphans. Where the
sandbox has a pid namespace, killing its first process takes all others with it, whatever they
ignore or whichever session they moved to; at sandbox level `landlock` a process of ours inside its
domain does the same (landlock.py). Without either (level `none`), orphans are handed
to us by the kernel (PR_SET_CHILD_SUBREAPER, Linux) and recognised by a marker in the environment
they were started with; a process that wipes its own environment as well escapes, and
docs/threat-model.md says so. Output is bounded and memory is watched.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

_MARKER = "AUTORESEARCH_TREE"
_PR_SET_PDEATHSIG, _PR_GET_DUMPABLE, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 1, 3, 4, 36
_SIGKILL = 9


class CappedOutput:
    """The first and the last half of what a process printed.

    The middle of a flood is counted and dropped.
    """

    def __init__(self, cap_bytes: int) -> None:
        self._half = max(1, cap_bytes // 2)
        self._head = bytearray()
        self._tail = bytearray()
        self.total_bytes = 0

    def add(self, data: bytes) -> None:
        """Take some more output."""
        self.total_bytes += len(data)
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if len(self._tail) > self._half:
            del self._tail[: len(self._tail) - self._half]

    def text(self) -> str:
        """What was kept, with a line that says how much is missing."""
        dropped = self.total_bytes - len(self._head) - len(self._tail)
        gap = f"\n[... {dropped} bytes dropped ...]\n".encode() if dropped else b""
        return bytes(self._head + gap + self._tail).decode("utf-8", "replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a tree uses now."""

    memory_bytes: int
    num_processes: int


class ProcessTree:
    """A child process and all its descendants."""

    def __init__(
        self, popen: subprocess.Popen[bytes], marker: str, output: CappedOutput, leash: int
    ) -> None:
        self._popen = popen
        self._leash = leash
        self._marker = marker
        self._wrapper = _wrapper_name(popen.args)
        self.output = output
        self._seen: dict[int, psutil.Process] = {}
        self._reader: threading.Thread | None = None
        if popen.stdout is not None:
            self._reader = threading.Thread(target=self._drain, args=(popen.stdout,), daemon=True)
            self._reader.start()

    @property
    def pid(self) -> int:
        """The process id of the first process."""
        return self._popen.pid

    def exit_code(self) -> int | None:
        """None while the first process lives; negative: the signal that ended it."""
        return self._popen.poll()

    def wait(self, timeout_s: float) -> int | None:
        """The exit code of the first process, waiting for it; None where it still lives."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout_s)
        return self._popen.poll()

    def _drain(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(stream.fileno(), 1 << 20):
                self.output.add(data)

    def usage(self) -> Usage:
        """Resident memory (shared pages counted in every process) and number of processes."""
        memory_bytes = num_processes = 0
        for process in self._members():
            with contextlib.suppress(psutil.Error):
                memory_bytes += process.memory_info().rss
                num_processes += 1
        return Usage(memory_bytes=memory_bytes, num_processes=num_processes)

    def _members(self) -> list[psutil.Process]:
        """The tree as far as it hangs together now; remembered for the kill."""
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self.pid)
            for process in [root, *root.children(recursive=True)]:
                self._seen[process.pid] = process
        return list(self._seen.values())

    def kill(self, wait_s: float = 10.0) -> list[int]:
        """Kill every process of the tree and wait for their end.

        The pids that survived (normally none).
        """
        if self._wrapper:  # its pid namespace ends with it, before we have looked for anybody
            self._popen.kill()
        if self._leash >= 0:  # the first process knows better than we whom to kill
            os.close(self._leash)
            self._leash = -1
            self._members()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(timeout=wait_s / 2)
        for _ in range(20):
            victims = {process.pid: process for process in [*self._members(), *self._orphans()]}
            living = [process for process in victims.values() if _is_living(process)]
            if not living and self._popen.poll() is not None:
                break
            for process in living:
                _kill_with_group(process)
            psutil.wait_procs(living, timeout=wait_s / 20)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(timeout=wait_s / 20)
        survivors = [process.pid for process in self._seen.values() if _is_living(process)]
        self._bury()
        if self._reader is not None and not survivors:
            self._reader.join(timeout=1.0)
        if self._popen.stdout is not None:
            self._popen.stdout.close()
        return survivors

    def _bury(self) -> None:
        """Take the exit codes of orphans that became our children, or they stay as zombies for as
        long as we live.

        Nobody may have seen the inner process of a wrapper (bwrap) before it was an orphan, and a
        zombie shows no marker, but its name. At worst this takes the exit code of another tree's
        wrapper that has just died.
        """
        dead = set(self._seen)
        for process in psutil.Process().children() if self._wrapper else []:
            with contextlib.suppress(psutil.Error):
                if process.name() == self._wrapper and process.status() == psutil.STATUS_ZOMBIE:
                    dead.add(process.pid)
        for pid in dead - {self.pid}:
            with contextlib.suppress(OSError):
                os.waitpid(pid, os.WNOHANG)

    def _orphans(self) -> list[psutil.Process]:
        """Processes that carry our marker but hang on somebody else by now."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.pid not in self._seen and process.environ().get(_MARKER) == self._marker:
                    self._seen[process.pid] = process
                    found.append(process)
        return found


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    output_cap_bytes: int = 0,
    is_expendable: bool = True,
    leash: int = -1,
) -> ProcessTree:
    """Start `argv` in a session of its own, without standard input.

    Args:
        env: the whole environment; a marker is added.
        pass_fds: descriptors that the child inherits under the same numbers; all others are closed.
        output_cap_bytes: how much of its output to keep; 0 drops all of it.
        is_expendable: whether the kernel shall take it first when memory runs out.
        leash: our end of a pipe, from now on the tree's: `argv` ends all when it is closed.

    Raises:
        OSError: the program cannot be started.
    """
    marker = secrets.token_hex(8)
    popen = subprocess.Popen(
        list(argv),
        env={**env, _MARKER: marker},
        cwd=cwd,
        pass_fds=tuple(pass_fds),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if output_cap_bytes else subprocess.DEVNULL,
        stderr=subprocess.STDOUT if output_cap_bytes else subprocess.DEVNULL,
        start_new_session=True,
    )
    if is_expendable:
        _sacrifice_first(popen.pid)
    return ProcessTree(popen, marker, CappedOutput(output_cap_bytes), leash)


def guard_this_process() -> None:
    """Make this trusted process unreadable to others, and the heir of orphans (on Linux)."""
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies (Linux; else nothing)."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def is_dumpable() -> bool:
    """Whether another process of this user may read our memory; True where nobody can tell."""
    if sys.platform != "linux":
        return True
    flag: int = ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
    return flag != 0


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _sacrifice_first(pid: int) -> None:
    """When memory runs out, the kernel shall take a candidate, not the session."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")


def _wrapper_name(argv: object) -> str:
    """The program's name where it is not Python itself, else ""."""
    program = argv[0] if isinstance(argv, list) else ""
    return "" if program == sys.executable else Path(program).name


def _kill_with_group(process: psutil.Process) -> None:
    """Kill a process and its group, which takes in one moment even those that fork ahead."""
    with contextlib.suppress(psutil.Error, OSError):
        process.kill()  # first: it makes sure that the pid was not given to somebody else
        group = os.getpgid(process.pid)
        if group != os.getpgrp():
            os.killpg(group, _SIGKILL)


def _is_living(process: psutil.Process) -> bool:
    """A zombie with threads is alive: only its first thread has left."""
    try:
        is_zombie = process.status() == psutil.STATUS_ZOMBIE
        return process.is_running() and not (is_zombie and process.num_threads() <= 1)
    except psutil.Error:
        return False
