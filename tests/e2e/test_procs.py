"""Process trees: output, use of memory, and a kill that leaves nobody."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from autoresearch.system import procs
from autoresearch.system.procs import ProcessTree, spawn

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs prctl and /proc")
GONE_IN_S = 20.0  # far more than it takes


@pytest.fixture(autouse=True, scope="module")
def _heir() -> None:
    """Be the heir of orphans, as the commands are."""
    procs.guard_this_process()


@contextmanager
def tree_of(source: str, **options: object) -> Iterator[ProcessTree]:
    """A Python process with its own output; killed at the end."""
    options = {"env": {"PATH": os.defpath}, "output_cap_bytes": 4096, **options}
    tree = spawn([sys.executable, "-S", "-c", source], **options)
    try:
        yield tree
    finally:
        tree.kill()


def wait_for(tree: ProcessTree, text: str) -> str:
    """The output once `text` is in it."""
    limit = time.monotonic() + GONE_IN_S
    while text not in tree.output.text() and time.monotonic() < limit:
        time.sleep(0.005)
    return tree.output.text()


def pids_in(text: str) -> list[int]:
    """The numbers that a tree printed."""
    return [int(word) for word in text.split() if word.isdigit()]


def is_running(pid: int) -> bool:
    """Whether a process lives, zombies not counted."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_output_and_exit_code_are_there_afterwards() -> None:
    """Both streams, in order, with the code of the first process."""
    source = "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(3)"
    with tree_of(source) as tree:
        assert tree.wait(GONE_IN_S) == 3
        tree.kill()
        assert tree.output.text() == "out\nerr\n"
        assert tree.exit_code() == 3


def test_without_a_cap_output_is_dropped(tmp_path: Path) -> None:
    """Nothing that it says is kept; folder and environment are as asked for."""
    source = "import os; open('here', 'w').write(' '.join(sorted(os.environ))); print('secret')"
    with tree_of(source, output_cap_bytes=0, cwd=tmp_path, env={"ONLY": "this"}) as tree:
        limit = time.monotonic() + GONE_IN_S
        while tree.exit_code() is None and time.monotonic() < limit:
            time.sleep(0.005)
        assert tree.output.text() == ""
    names = set((tmp_path / "here").read_text().split()) - {"LC_CTYPE"}
    assert names == {"AUTORESEARCH_TREE", "ONLY"}


def test_only_named_descriptors_are_inherited() -> None:
    """An open file of ours is not the child's, whatever its flags."""
    reader, writer = os.pipe()
    secret = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(secret, True)
    source = f"""
import os
os.write({writer}, b'passed')
try:
    os.fstat({secret}); print('leaked')
except OSError:
    print('closed')
"""
    with tree_of(source, pass_fds=[writer]) as tree:
        assert wait_for(tree, "\n") == "closed\n"
    assert os.read(reader, 10) == b"passed"
    for fd in (reader, writer, secret):
        os.close(fd)


def test_usage_counts_the_whole_tree() -> None:
    """Memory and number of processes include children."""
    source = """
import os, time
block = bytearray(60_000_000)
if os.fork() == 0:
    time.sleep(60)
print('ready', flush=True)
time.sleep(60)
"""
    with tree_of(source) as tree:
        wait_for(tree, "ready")
        usage = tree.usage()
        assert usage.num_processes == 2
        assert usage.memory_bytes > 60_000_000
        tree.kill()
        assert tree.usage().num_processes == 0


STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
"""


@linux
@pytest.mark.parametrize(
    "escape",
    [
        "os.fork()",
        "os.fork() or os.setsid()",
        "os.fork() or (os.setsid(), os.fork() and os._exit(0))",  # its parent is gone: an orphan
        "os.fork() or (os.fork() and os._exit(0), os.setsid(), os.fork())",
    ],
)
def test_the_kill_reaches_everybody(escape: str) -> None:
    """Children that ignore SIGTERM, lead sessions of their own or were orphaned all die."""
    source = f"{STUBBORN}\n{escape}\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
    with tree_of(source) as tree:
        wait_for(tree, "\n")
        time.sleep(0.1)
        assert tree.kill() == []
        pids = pids_in(tree.output.text())
        assert tree.pid in pids
        assert not [pid for pid in pids if is_running(pid)]


@linux
def test_a_process_whose_first_thread_left_is_killed_too() -> None:
    """It looks like a zombie, and its other threads go on."""
    source = """
import ctypes, os, threading, time
def stay():
    time.sleep(0.05)
    print(os.getpid(), flush=True)
    time.sleep(60)
threading.Thread(target=stay).start()
ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)
"""
    with tree_of(source) as tree:
        wait_for(tree, "\n")
        assert psutil.Process(tree.pid).status() == psutil.STATUS_ZOMBIE
        assert tree.exit_code() is None
        assert tree.kill() == []
        assert tree.exit_code() is not None


@linux
def test_a_kill_leaves_no_zombie_behind() -> None:
    """Orphans that became our children are buried, or a long session runs out of process ids."""
    source = f"""{STUBBORN}
for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        time.sleep(60)
print('ready', flush=True)
time.sleep(60)
"""
    mine = {p.pid for p in psutil.Process().children()}
    with tree_of(source) as tree:
        wait_for(tree, "ready")
        time.sleep(0.1)
        tree.usage()
        tree.kill()
        left = {p.pid for p in psutil.Process().children()} - mine
        assert not left & set(tree._seen)


def test_killing_twice_or_what_has_ended_is_nothing() -> None:
    """The second kill finds nobody."""
    with tree_of("pass") as tree:
        assert tree.kill() == []
        assert tree.kill() == []
        assert tree.exit_code() in (0, -9)


def test_survivors_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a kill does nothing, the caller hears which processes are left."""
    with tree_of("import time; time.sleep(60)") as tree:
        monkeypatch.setattr(psutil.Process, "kill", lambda self: None)
        monkeypatch.setattr(os, "killpg", lambda *_: None)
        assert tree.kill(wait_s=0.05) == [tree.pid]
        monkeypatch.undo()


@linux
def test_a_child_of_the_dead_can_die_with_its_parent() -> None:
    """A process that asked for it does not outlive the one that started it."""
    source = """
import os, sys, time
from autoresearch.system.procs import die_with_parent
if os.fork() == 0:
    die_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(60)
time.sleep(60)
"""
    path = os.pathsep.join(sys.path)
    with tree_of(source, env={"PATH": os.defpath, "PYTHONPATH": path}) as tree:
        (child,) = pids_in(wait_for(tree, "\n"))
        psutil.Process(tree.pid).kill()
        limit = time.monotonic() + GONE_IN_S
        while is_running(child) and time.monotonic() < limit:
            time.sleep(0.005)
        assert not is_running(child)


@linux
def test_a_guarded_process_is_not_dumpable() -> None:
    """The fixture above guarded this very process."""
    assert not procs.is_dumpable()
