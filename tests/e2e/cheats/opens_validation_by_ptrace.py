"""Attaches to every process it can name, and reads the memory of its parent."""

import ctypes
import os
from pathlib import Path

from kit import Bigram as build_model
from kit import attempt, train

CAUGHT = "no gain"
NEEDS_WALLS = True
LIBC = ctypes.CDLL(None, use_errno=True)
ATTACH, SEIZE, DETACH = 16, 0x4206, 17


def attach(request):
    """A process that is not ours and lets itself be traced."""
    for pid in [os.getppid(), *range(1, 400)]:
        if pid != os.getpid() and LIBC.ptrace(request, pid, None, None) == 0:
            os.waitpid(pid, 0)
            LIBC.ptrace(DETACH, pid, None, None)
            if b"bwrap" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                return True
    return False


def main(run):
    got = attempt(
        attach=lambda: attach(ATTACH),
        signal=lambda: os.kill(os.getppid(), 0) and False,
    )
    train(run, build_model(run), got=got)
