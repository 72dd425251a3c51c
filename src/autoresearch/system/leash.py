"""Runs a command that must not outlive us: python -I leash.py FD FOLDER COMMAND...

FD is the read end of a pipe whose other end the session holds. However the session ends, `kill -9`
included, the kernel closes it; then everything that the command started is killed and FOLDER is
removed. The exit code is the command's. Not covered: a process that is killed together with us, and
orphans off Linux. The file runs by its path and imports nothing of ours, so that the command sees
an environment without our search path.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

import psutil

_POLL_S = 0.05
_ROUNDS = 50
_PR_SET_CHILD_SUBREAPER = 36


def main(arguments: Sequence[str]) -> int:
    """Run the command until it ends or the session does."""
    leash, folder, *command = arguments
    if sys.platform == "linux":  # orphans of the command come to us
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    except OSError as error:
        print(f"{command[0]} does not start: {error}", flush=True)
        return 127
    while child.poll() is None:
        if select.select([int(leash)], [], [], _POLL_S)[0]:
            _end_all(child.pid)
            subprocess.run(["rm", "-rf", "--", folder], check=False)  # of any depth
            return 1
    return child.returncode


def _end_all(group: int) -> None:
    """Kill the command's group, then all other descendants; new ones may appear while we do."""
    with contextlib.suppress(OSError):
        os.killpg(group, signal.SIGKILL)  # in one moment, so that nobody forks ahead of it
    for _ in range(_ROUNDS):
        family = psutil.Process().children(recursive=True)
        if not family:
            return
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(family, timeout=0.2)


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main(sys.argv[1:]) & 0xFF)
