"""Walls without namespaces: what stands between this program's start and the one that it becomes.

`python -I -S -c "...main()" PLAN PROGRAM ...` makes two processes. The first, the reaper, is ours:
it waits for the program or for the session to end, kills all that the program ever started, and
removes its home. The second shuts itself in and becomes the program:
* Landlock: only the plan's paths can be opened, no TCP; from Linux 6.12 (ABI 6) signals and
  abstract sockets end at its own descendants. Tracing processes outside is refused by all ABIs.
* seccomp: what Landlock has no word for (seccomp.py).
* no capabilities, no new privileges, limits on core dumps, file size and processes.

Everything is inherited and nothing can be taken off again. The reaper is in an outer domain of its
own, so that SIGKILL to "every process" reaches the program's descendants, all at one moment, and
nobody else; under an older kernel it kills its children until it has none. Only the standard
library: this runs before anything else.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from autoresearch.system import seccomp

OLDEST_ABI = 3  # Linux 6.2: before it, renaming and truncating are not told from writing
SCOPED_ABI = 6
NET_ABI, IOCTL_ABI = 4, 5
FILE_BYTES = 16 << 30  # of one file that the program writes, submitted weights included
MOST_MORE_PROCESSES = 4096  # beside those that this user has; for root the kernel sets no limit
HOME_PREFIX = "autoresearch-home-"

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same on every architecture
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_NODES = 1 << 6 | 1 << 9 | 1 << 11  # making devices and sockets
_ALL = (1 << 16) - 1
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_DEVICE = _READ_FILE | _WRITE_FILE | _IOCTL_DEV
_TCP, _SCOPES = 0b11, 0b11

_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_CHILD_SUBREAPER, _PR_NO_NEW_PRIVS = 1, 24, 36, 38
_CAPABILITY_VERSION = 0x20080522
_HARMLESS_DEVICES = ("null", "zero", "full", "random", "urandom")
_HARMLESS_FACTS = ("self", "cpuinfo", "meminfo", "stat", "version", "devices", "driver/nvidia")


def abi() -> int:
    """The kernel's Landlock version, 0 where there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(ctypes.CDLL(None, use_errno=True).syscall(_CREATE, None, 0, 1)))


def main() -> None:
    """Be the reaper of one program; ends as the program ended."""
    plan, argv = json.loads(sys.argv[1]), sys.argv[2:]
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _prctl(_PR_CHILD_SUBREAPER, 1)
    _prctl(_PR_NO_NEW_PRIVS, 1)
    if plan["abi"] >= SCOPED_ABI:
        _restrict(_ruleset(0, 0, _SCOPES))
    home = tempfile.mkdtemp(prefix=HOME_PREFIX)
    child = os.fork()
    if child == 0:
        _become(plan, home, argv)
    for fd in plan["fds"]:
        os.close(fd)
    status = _await_end(child, plan["leash"], woken)
    _kill_all(is_scoped=plan["abi"] >= SCOPED_ABI)
    with contextlib.suppress(RecursionError):
        shutil.rmtree(home, ignore_errors=True)
    if status >= 0:
        os._exit(status)
    if status != -signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)


def _await_end(child: int, leash: int, woken: int) -> int:
    """The exit code of `child`; -SIGKILL where whoever holds the leash lets go of it first."""
    watch = select.poll()
    watch.register(leash, select.POLLHUP)
    watch.register(woken, select.POLLIN)
    while True:
        ready = dict(watch.poll())
        if leash in ready:
            return -signal.SIGKILL
        os.read(woken, 512)
        for pid, status in _reap():
            if pid == child:
                return os.waitstatus_to_exitcode(status)


def _reap() -> Iterator[tuple[int, int]]:
    """Those of our children, adopted ones too, that have ended."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended


def _kill_all(*, is_scoped: bool) -> None:
    """Kill whatever descends from us, until nothing does."""
    with contextlib.suppress(ChildProcessError):
        while True:
            if is_scoped and not _may_signal(os.getppid()) and not _may_signal(1):
                with contextlib.suppress(OSError):
                    os.kill(-1, signal.SIGKILL)
            else:
                with open("/proc/thread-self/children") as file:
                    for pid in file.read().split():
                        os.kill(int(pid), signal.SIGKILL)
            os.waitpid(-1, 0)


def _may_signal(pid: int) -> bool:
    """Whether a signal of ours would reach a process that our domain shuts out."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True  # gone, so it says nothing
    except PermissionError:
        return False
    return True


def _become(plan: dict[str, Any], home: str, argv: list[str]) -> None:
    """Shut this process in and turn into the program; never returns."""
    try:
        os.close(plan["leash"])
        for fd in plan["fds"]:
            os.set_inheritable(fd, True)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.chdir(home)
        _limit()
        _drop_capabilities()
        _confine(plan, home)
        seccomp.install(os.getpid(), only_own_signals=plan["abi"] < SCOPED_ABI)
        env = {**os.environ, "HOME": home, "TMPDIR": home}
        os.execve(argv[0], argv, env)  # noqa: S606 - what this process is for
    except OSError as error:
        os.write(2, f"the sandbox could not start {argv[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_FSIZE, FILE_BYTES)
    if os.getuid():
        _lower(resource.RLIMIT_NPROC, _num_threads_of_user() + MOST_MORE_PROCESSES)


def _lower(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def _num_threads_of_user() -> int:
    """What RLIMIT_NPROC counts."""
    count = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{name}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


def _drop_capabilities() -> None:
    """Root without capabilities: the owner of root's files and nothing more."""
    for capability in range(64):
        with contextlib.suppress(OSError):  # past the last one, or not root: nothing to drop
            _prctl(_PR_CAPBSET_DROP, capability)
    header = struct.pack("Ii", _CAPABILITY_VERSION, 0)
    _checked("capset", ctypes.CDLL(None, use_errno=True).capset(header, bytes(24)))


def _confine(plan: dict[str, Any], home: str) -> None:
    """Landlock: what the plan names and nothing else."""
    version = plan["abi"]
    handled = _ALL if version >= IOCTL_ABI else _ALL & ~_IOCTL_DEV
    rules = _ruleset(
        handled, _TCP if version >= NET_ABI else 0, _SCOPES if version >= SCOPED_ABI else 0
    )
    for folder in plan["runtime"]:
        for path, access in visible_in(os.path.realpath(folder), plan["hidden"]):
            _allow(rules, path, access & handled)
    for path in plan["listed"]:  # Python looks for packages by listing the folders that they lie in
        _allow(rules, path, _READ_DIR & handled)
    for path in (*plan["readable"], *(f"/proc/{name}" for name in _HARMLESS_FACTS)):
        _allow(rules, path, _READ & handled)
    for path in (home, *plan["writable"]):
        _allow(rules, path, _ALL & ~_NODES & handled)
    for path in (*plan["devices"], *(f"/dev/{name}" for name in _HARMLESS_DEVICES)):
        _allow(rules, path, _DEVICE & handled)
    _restrict(rules)


def visible_in(folder: str, hidden: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Rules that show `folder` without what is `hidden` in it; both without symbolic links.

    A rule holds for everything below its path and none takes away, so next to something hidden
    every neighbour gets a rule. Python lists the folders that it imports from: names show, also
    below hidden folders; content does not.
    """
    if folder in hidden:
        return
    if not any(path.startswith(f"{folder}/") for path in hidden):
        yield folder, _READ
        return
    yield folder, _READ_DIR
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_symlink():
                yield from visible_in(entry.path, hidden)


def _ruleset(handled_fs: int, handled_net: int, scoped: int) -> int:
    attributes = struct.pack("=QQQ", handled_fs, handled_net, scoped)
    return _syscall("landlock_create_ruleset", _CREATE, attributes, len(attributes), 0)


def _allow(rules: int, path: str, access: int) -> None:
    """Add a rule for `path` and what is below it; a path that is not there needs none."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        is_folder = os.path.isdir(f"/proc/self/fd/{fd}")
        attributes = struct.pack("=Qi", access if is_folder else access & _OF_FILES, fd)
        _syscall("landlock_add_rule", _ADD, rules, _PATH_BENEATH, attributes, 0)
    finally:
        os.close(fd)


def _restrict(rules: int) -> None:
    _syscall("landlock_restrict_self", _RESTRICT, rules, 0)
    os.close(rules)


def _syscall(name: str, number: int, *arguments: Any) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(name, int(libc.syscall(ctypes.c_long(number), *longs)))


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    _checked(f"prctl {option}", libc.prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3))


def _checked(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
