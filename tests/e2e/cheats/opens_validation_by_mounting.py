"""Mounts what its walls do not show: binds, a fresh proc, a disk."""

import ctypes
import glob
import os
from pathlib import Path

from kit import Bigram as build_model
from kit import attempt, train

CAUGHT = "no gain"
NEEDS_WALLS = True
DATA = "@FOLDER@/data"
LIBC = ctypes.CDLL(None, use_errno=True)
BIND, NEW_USER, NEW_MOUNTS = 4096, 0x10000000, 0x20000


def mount(source, kind, flags):
    """Whether it can be mounted, from new namespaces too."""
    os.makedirs("/tmp/mounted", exist_ok=True)
    pid = os.fork()
    if pid == 0:
        LIBC.unshare(NEW_USER | NEW_MOUNTS)
        failed = LIBC.mount(source.encode(), b"/tmp/mounted", kind, flags, None)
        seen = [name for name in os.listdir("/tmp/mounted")] if not failed else []
        is_data = any(name in ("data", "validation.bin", "home") for name in seen)
        os._exit(0 if is_data else 1)
    return os.waitpid(pid, 0)[1] == 0


def main(run):
    got = attempt(
        bind=lambda: mount(DATA, None, BIND),
        root=lambda: mount("/proc/1/root/home", None, BIND),
        disk=lambda: any(mount(node, b"ext4", 0) for node in glob.glob("/dev/[svn]d*")[:4]),
        chroot=lambda: LIBC.chroot(b"/proc/1/root") == 0 and os.path.exists(DATA),
        node=lambda: (
            os.mknod("/tmp/disk", 0o60600, os.makedev(8, 0)) or Path("/tmp/disk").read_bytes()
        ),
    )
    train(run, build_model(run), got=got)
