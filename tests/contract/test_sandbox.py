"""What every sandbox level promises, and what only walls can: one suite over all that work here."""

from __future__ import annotations

import json
import os
import platform
import select
import struct
import subprocess
import sys
import textwrap
import time
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from autoresearch.data.dataset import Dataset
from autoresearch.referee.cache import CompileCache
from autoresearch.referee.host import Host
from autoresearch.system import hardware, landlock, nvml, seccomp
from autoresearch.system import sandbox as sandbox_module
from autoresearch.system.clock import SystemClock
from autoresearch.system.procs import guard_this_process
from autoresearch.system.sandbox import (
    LEVELS,
    Landlock,
    Sandbox,
    Walls,
    device_nodes,
    hidden_inside,
    open_sandbox,
    probe_levels,
    runtime_folders,
)
from autoresearch.values.config import Config
from autoresearch.values.errors import SandboxUnavailable

GONE_IN_S = 20.0
OLD = f"landlock of Linux 6.2 (ABI {landlock.OLDEST_ABI})"
WORKING = [level for level, works, _ in probe_levels() if works]
WALLED = [level for level in WORKING if level != "none"] + [OLD] * ("landlock" in WORKING)
Python = Callable[..., str]


def open_level(name: str) -> Sandbox:
    """A level by its name, or Landlock as an older kernel would have it."""
    guard_this_process()
    return Landlock(landlock.OLDEST_ABI) if name == OLD else open_sandbox(name)


@pytest.fixture(params=[*WALLED, "none"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """Every level that works here."""
    return open_level(request.param)


@pytest.fixture(params=WALLED or [pytest.param("", marks=pytest.mark.skip(reason="no walls here"))])
def walled(request: pytest.FixtureRequest) -> Sandbox:
    """Every level with walls that works here."""
    return open_level(request.param)


def execute(
    sandbox: Sandbox,
    source: str,
    walls: Walls | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: tuple[int, ...] = (),
) -> str:
    """What a Python program prints behind walls."""
    tree = sandbox.spawn(
        [sys.executable, "-S", "-c", textwrap.dedent(source)],
        walls or Walls(),
        env=env or {},
        pass_fds=pass_fds,
        output_cap_bytes=1 << 16,
    )
    limit = time.monotonic() + GONE_IN_S
    while tree.exit_code() is None and time.monotonic() < limit:
        time.sleep(0.005)
    assert tree.kill() == []
    return tree.output.text().strip()


def test_it_runs_python_and_takes_its_output(sandbox: Sandbox) -> None:
    """Environment as given, home and a temporary folder that can be written."""
    source = """
        import os, tempfile
        open(os.path.join(os.environ["HOME"], "file"), "w").write("x")
        with tempfile.TemporaryFile() as file: file.write(b"x")
        print(os.environ["GIVEN"], os.environ.get("SECRET"), os.getcwd() == os.environ["HOME"])
    """
    os.environ["SECRET"] = "of the person who runs us"
    try:
        home = Path(os.environ["AUTORESEARCH_HOME"])
        home.mkdir()
        walls = Walls(writable={home: "/cache"})
        assert execute(sandbox, source, walls, {"GIVEN": "value"}) == "value None True"
    finally:
        del os.environ["SECRET"]


def test_bound_paths_are_there(sandbox: Sandbox, tmp_path: Path) -> None:
    """A file to read and a folder to write, under the names that `inside` gives."""
    (tmp_path / "train.py").write_text("program")
    folder = tmp_path / "cache"
    folder.mkdir()
    walls = Walls(readable={tmp_path / "train.py": "/trial/train.py"}, writable={folder: "/cache"})
    names = [sandbox.inside(walls, path) for path in (tmp_path / "train.py", folder)]
    source = f"""
        print(open({names[0]!r}).read())
        open({names[1]!r} + "/kernel", "w").write("compiled")
    """
    assert execute(sandbox, source, walls) == "program"
    assert (folder / "kernel").read_text() == "compiled"


def test_descriptors_are_passed(sandbox: Sandbox) -> None:
    """The channel of a candidate goes through the walls."""
    reader, writer = os.pipe()
    execute(sandbox, f"import os; os.write({writer}, b'hello')", pass_fds=(writer,))
    os.close(writer)
    assert os.read(reader, 10) == b"hello"
    os.close(reader)


def test_nobody_survives_the_kill(sandbox: Sandbox) -> None:
    """Grandchildren in sessions of their own that ignore every polite signal."""
    marker = f"stubborn-{os.getpid()}-{time.monotonic_ns()}"
    source = f"""
        import os, signal, sys, time
        MARKER = "{marker}"
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
                if os.fork():
                    os._exit(0)
                print("up", flush=True)
                time.sleep(60)
        time.sleep(60)
    """
    tree = sandbox.spawn(
        [sys.executable, "-S", "-c", textwrap.dedent(source)],
        Walls(),
        env={},
        pass_fds=(),
        output_cap_bytes=1 << 16,
    )
    limit = time.monotonic() + GONE_IN_S
    while tree.output.text().count("up") < 3 and time.monotonic() < limit:
        time.sleep(0.005)
    assert tree.output.text().count("up") == 3
    assert tree.kill() == []
    assert living_with(marker) == []


def test_a_program_that_is_missing_is_an_error_or_an_exit(sandbox: Sandbox) -> None:
    """Never a process that seems to run."""
    try:
        tree = sandbox.spawn(
            ["/no-such-program"], Walls(), env={}, pass_fds=(), output_cap_bytes=4096
        )
    except SandboxUnavailable:
        return
    assert tree.wait(GONE_IN_S) not in (0, None)
    tree.kill()


# A folder is read if it shows a name that does not lead to Python or to us: a checkout may lie in
# /tmp or in /home.
READ = f"""
import os
OURS = {[str(folder) + "/" for folder in sandbox_module.runtime_folders()]!r}
def reads(path):
    try:
        if not os.path.isdir(path):
            return bool([open(path, "rb").read(1)])
        names = [os.path.join(path, name, "") for name in os.listdir(path)]
        return not all(any(folder.startswith(name) for folder in OURS) for name in names)
    except OSError:
        return False
"""


def test_files_outside_cannot_be_read(walled: Sandbox, tmp_path: Path) -> None:
    """Neither ours, nor the person's, nor the machine's secrets."""
    (tmp_path / "validation.bin").write_text("x")
    paths = [str(tmp_path / "validation.bin"), "/etc/passwd", "/etc/shadow", "/root/.ssh", "/home"]
    paths += ["/var", "/sys/class", "/boot", "/mnt", "/tmp", "/run", "/dev/shm"]
    source = f"{READ}print([p for p in {paths!r} if reads(p)])"
    assert execute(walled, source) == "[]"


def test_nothing_that_lasts_can_be_written(walled: Sandbox, tmp_path: Path) -> None:
    """Not even by root: read-only means it, and what can be written goes with the process."""
    program = tmp_path / "train.py"
    program.write_text("program")
    walls = Walls(readable={program: "/trial/train.py"})
    name = walled.inside(walls, program)
    before = program.stat()
    source = f"""
        import contextlib, os, sys
        wrote = []
        folders = ["/", "/usr", "/etc", os.path.dirname({name!r}), os.path.dirname(os.__file__)]
        for path in [*(os.path.join(folder, "planted") for folder in folders), {name!r}]:
            with contextlib.suppress(OSError):
                open(path, "a").close()
                wrote.append(path)
        for spoil in (
            lambda: os.truncate({name!r}, 0), lambda: os.chmod({name!r}, 0o777),
            lambda: os.utime({name!r}, (1, 1)), lambda: os.setxattr({name!r}, "user.note", b"x"),
            lambda: os.unlink({name!r}), lambda: os.rename({name!r}, {name!r} + "x"),
            lambda: os.link({name!r}, os.path.join(os.environ["HOME"], "link")),
        ):
            with contextlib.suppress(OSError):
                spoil()
        for folder in (os.environ["HOME"], os.environ["TMPDIR"], "/tmp", "/dev/shm"):
            with contextlib.suppress(OSError):
                open(folder + "/left-behind", "w").close()
        print(wrote)
    """
    assert execute(walled, source, walls) == "[]"
    assert program.read_text() == "program"
    assert (program.stat().st_mode, program.stat().st_mtime) == (before.st_mode, before.st_mtime)
    assert os.listxattr(program) == []
    assert not Path("/tmp/left-behind").exists()
    look = f"""{READ}
print([p for p in ("/tmp", "/dev/shm", os.environ["HOME"], os.environ["TMPDIR"]) if reads(p)])"""
    assert execute(walled, look, walls) == "[]"


def test_there_is_no_network(walled: Sandbox, tmp_path: Path) -> None:
    """No TCP, no UDP, no raw packets, no socket of the host, by name or by path."""
    import socket

    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_UNIX) as local,
        socket.socket(socket.AF_UNIX) as named,
    ):
        abstract = f"\0autoresearch-{os.getpid()}"  # tests run side by side
        local.bind(abstract)
        local.listen()
        path = f"/tmp/autoresearch-{os.getpid()}.sock"
        named.bind(path)
        named.listen()
        datagrams.bind(("127.0.0.1", 0))
        datagrams.settimeout(0.2)
        source = f"""
            import socket
            def datagram():
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                    out.sendto(b"x", {datagrams.getsockname()!r})
            def interfaces():
                assert [name for _, name in socket.if_nameindex() if name != "lo"]
            done = []
            for attempt in (
                lambda: socket.create_connection({server.getsockname()!r}, timeout=2),
                lambda: socket.socket(socket.AF_UNIX).connect({abstract!r}),
                lambda: socket.socket(socket.AF_UNIX).connect({path!r}),
                lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
                lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW), interfaces,
            ):
                try:
                    attempt()
                    done.append("connected")
                except (OSError, AssertionError):
                    pass
            try:
                datagram()
            except OSError:
                pass
            socket.socketpair()
            print(done)
        """
        try:
            assert execute(walled, source) == "[]"
            with pytest.raises(TimeoutError):
                datagrams.recv(1)
        finally:
            os.unlink(path)


def test_other_processes_are_neither_seen_nor_touched(walled: Sandbox) -> None:
    """No signal, no tracing, no look at their memory, no limits set on them, no listing."""
    tkill = seccomp._OTHER_SIGNALS["tkill"][list(seccomp.ARCHITECTURES).index(platform.machine())]
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as victim:
        source = f"""{READ}
import contextlib, ctypes, resource, signal
libc = ctypes.CDLL(None, use_errno=True)
done = []
for target in ({victim.pid}, {os.getpid()}, os.getppid()):
    if target > 1:
        done += [n for n in (0, signal.SIGCONT) if not libc.kill(target, n)]
        done += ["tkill"] * (libc.syscall({tkill}, target, 0) == 0)
        done += ["trace"] * (libc.ptrace(16, target, None, None) == 0)
        done += [p for p in ("environ", "maps", "mem", "cmdline", "fd", "root/etc/passwd")
            if reads(f"/proc/{{target}}/{{p}}")]
        with contextlib.suppress(OSError):
            resource.prlimit(target, resource.RLIMIT_CORE, (0, 0))
            done.append("limit")
pids = []
with contextlib.suppress(OSError):
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
print(done, len(pids) < 5)
"""
        assert execute(walled, source) == "[] True"
        assert victim.poll() is None
        victim.communicate(b"\n")


def test_no_queue_or_key_outlives_the_process(walled: Sandbox) -> None:
    """What the kernel keeps for a user between processes is a way from one trial to the next."""
    source = """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        segment = libc.shmget(0x41525345, 4096, 0o1600)
        print(libc.shmget(0x41525345, 4096, 0o600) >= 0)
    """
    execute(walled, source)
    assert execute(walled, source.replace("0o1600", "0o600")) == "False"


def test_whoever_hides_is_killed_too(walled: Sandbox) -> None:
    """Two forks, a session of its own, an empty environment; or a new process id all the time."""
    marker = f"hidden-{os.getpid()}-{time.monotonic_ns()}"
    source = f"""
        import os, sys, time
        def hide(then):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    then()
                os._exit(0)
        def wipe():
            code = "import time; print('up', flush=True); time.sleep(60)"
            os.execve(sys.executable, [sys.executable, "-S", "-c", code, {marker!r}], {{}})
        def run_ahead():
            print("up", flush=True)
            while not os.fork():
                pass
        hide(wipe)
        if {walled is not None and getattr(walled, "abi", 9) >= landlock.SCOPED_ABI}:
            hide(run_ahead)
        else:
            print("up", flush=True)
        MARKER = {marker!r}
        time.sleep(60)
    """
    reader, writer = os.pipe()  # everybody holds the other end: its end comes with the last death
    tree = walled.spawn(
        [sys.executable, "-S", "-c", textwrap.dedent(source)],
        Walls(),
        env={},
        pass_fds=(writer,),
        output_cap_bytes=1 << 16,
    )
    os.close(writer)
    limit = time.monotonic() + GONE_IN_S
    while tree.output.text().count("up") < 2 and time.monotonic() < limit:
        time.sleep(0.005)
    assert tree.output.text().count("up") == 2
    assert tree.kill() == []
    assert select.select([reader], [], [], GONE_IN_S)[0], "somebody lives on"
    assert os.read(reader, 1) == b""
    os.close(reader)


def living_with(marker: str) -> list[int]:
    """Processes that have `marker` in their command line."""
    return [
        p.pid
        for p in psutil.process_iter(["cmdline", "status"])
        if marker in " ".join(p.info["cmdline"] or []) and p.info["status"] != psutil.STATUS_ZOMBIE
    ]


def test_there_are_no_rights_to_mount_or_to_become_root(walled: Sandbox, tmp_path: Path) -> None:
    """Hidden folders cannot be uncovered, not even from a user namespace of one's own."""
    hidden = next(iter(hidden_inside(hidden_folders_here())), None)
    source = f"""{READ}
if True:
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        print(open("/proc/self/status").read().split("CapEff:")[1].split()[0])
        outcome = []
        for unshare in (False, True):
            if unshare:
                libc.unshare(0x10000000 | 0x20000)
            outcome.append(libc.umount2({str(hidden).encode()!r}, 2))
            outcome.append(libc.mount(b"none", b"/usr", None, 32 | 4096, None))
            try:
                open("/usr/planted", "w")
                outcome.append(0)
            except OSError:
                outcome.append(-1)
        files = [os.path.join(f, n) for f, _, names in os.walk({str(hidden)!r}) for n in names]
        print(outcome, len([f for f in files if reads(f)]))
    """
    capabilities, _, rest = execute(walled, source, Walls(hidden=hidden_folders_here())).partition(
        "\n"
    )
    assert int(capabilities, 16) == 0
    outcome, _, listing = rest.rpartition(" ")
    assert json.loads(outcome)[0] == json.loads(outcome)[3] == -1
    assert json.loads(outcome)[2] == json.loads(outcome)[5] == -1
    assert listing == "0"


def hidden_folders_here() -> list[Path]:
    """Corpus text of this machine's Pythons, as the referee hides it."""
    from autoresearch.data.pystdlib import hidden_folders

    return hidden_folders(runtime_folders())


def test_hidden_folders_have_no_content(walled: Sandbox) -> None:
    """The corpus that comes from the standard library is gone, the rest works."""
    hidden = hidden_inside(hidden_folders_here())
    source = f"""{READ}
import collections, json
files = [os.path.join(f, n) for p in {[str(p) for p in hidden]!r}
    for f, _, names in os.walk(p) for n in names]
print([f for f in files if reads(f)])
"""
    assert execute(walled, source, Walls(hidden=hidden_folders_here())) == "[]"


def test_only_the_given_devices_are_there(walled: Sandbox) -> None:
    """No disk, no card that was not named; what opens is harmless or its own."""
    there = [name for name in os.listdir("/dev") if "watchdog" not in name]
    source = f"""
        import contextlib, json, os
        opened = []
        for name in {there!r}:
            with contextlib.suppress(OSError):
                os.close(os.open("/dev/" + name, os.O_RDONLY | os.O_NONBLOCK))
                opened.append(name)
        print(json.dumps(opened))
    """
    allowed = {"console", "core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr"}
    allowed |= {"stdin", "stdout", "tty", "urandom", "zero"}
    opened = set(json.loads(execute(walled, source)))
    assert {"null", "urandom", "zero"} <= opened <= allowed


def test_private_files_are_limited(walled: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that fills its /tmp gets an error, not the machine's memory."""
    if walled.level == "landlock":
        limits = "import resource as r; print(r.getrlimit(r.RLIMIT_FSIZE)[0], r.getrlimit(4)[0])"
        assert execute(walled, limits) == f"{landlock.FILE_BYTES} 0"
        return
    monkeypatch.setattr(sandbox_module, "PRIVATE_BYTES", 1 << 20)
    source = """
        try:
            with open("/tmp/flood", "wb") as file:
                for _ in range(8):
                    file.write(bytes(1 << 19))
            print("filled")
        except OSError as error:
            print(error.errno)
    """
    assert execute(walled, source) == "28"


def test_it_ends_with_whoever_started_it(walled: Sandbox) -> None:
    """A session that is killed takes its candidates with it, also those in other sessions."""
    marker = f"lonely-{os.getpid()}-{time.monotonic_ns()}"
    source = f"""
import sys, time
from autoresearch.system.sandbox import Landlock, Walls, open_sandbox
abi = {getattr(walled, "abi", 0)}
tree = (Landlock(abi) if abi else open_sandbox({walled.level!r})).spawn(
    [sys.executable, "-S", "-c",
     "MARKER='{marker}'; import os, time; os.fork() or os.setsid(); print('up', flush=True); "
     "time.sleep(60)"],
    Walls(), env={{}}, pass_fds=(), output_cap_bytes=4096)
while tree.output.text().count("up") < 2:
    time.sleep(0.005)
print("up", flush=True)
time.sleep(60)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, env=env
    ) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == b"up\n"
        session.kill()
    limit = time.monotonic() + GONE_IN_S
    while living_with(marker) and time.monotonic() < limit:
        time.sleep(0.01)
    assert living_with(marker) == []


def test_levels_are_probed_best_first() -> None:
    """Every level is listed with a reason, the last always works."""
    levels = probe_levels()
    assert tuple(level for level, _, _ in levels) == LEVELS
    assert all(reason for _, _, reason in levels)
    assert levels[-1][:2] == ("none", True)


def test_auto_takes_the_best_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Walls where they can be had, else none; a level asked for by name is never replaced."""
    monkeypatch.setattr(sandbox_module, "bubblewrap_problem", lambda: "")
    monkeypatch.setattr(sandbox_module, "landlock_problem", lambda: "")
    assert open_sandbox("auto").level == open_sandbox("bubblewrap").level == "bubblewrap"
    monkeypatch.setattr(sandbox_module, "bubblewrap_problem", lambda: "it is forbidden here")
    assert open_sandbox("auto").level == open_sandbox("landlock").level == "landlock"
    assert open_sandbox("auto", "cuda:0").level == "none"
    with pytest.raises(SandboxUnavailable, match="CUDA does not start behind Landlock"):
        open_sandbox("landlock", "cuda:0")
    monkeypatch.setattr(sandbox_module, "landlock_problem", lambda: "the kernel is old")
    assert open_sandbox("auto").level == open_sandbox("none").level == "none"
    with pytest.raises(SandboxUnavailable, match=r"forbidden here.*autoresearch doctor"):
        open_sandbox("bubblewrap")
    with pytest.raises(SandboxUnavailable, match="kernel is old"):
        open_sandbox("landlock")


@pytest.mark.parametrize(
    ("platform", "abi", "machine", "expected"),
    [
        ("darwin", 0, "arm64", "needs Linux"),
        ("linux", 0, "x86_64", "no Landlock; 3 is needed"),
        ("linux", 2, "x86_64", "version 2 of Landlock; 3 is needed"),
        ("linux", 7, "riscv64", "system calls of riscv64"),
        ("linux", 7, "x86_64", "failed with exit code 127: could not"),
        ("linux", 7, "x86_64", ""),
    ],
)
def test_what_keeps_landlock_from_working_is_said(
    platform: str, abi: int, machine: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """System, kernel, processor; then it is tried for real, and the failure is quoted."""
    code = "import os; os.write(2, b'could not'); os._exit(127)" if expected else "pass"
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(landlock, "abi", lambda: abi)
    monkeypatch.setattr(seccomp.platform, "machine", lambda: machine)
    monkeypatch.setattr(sandbox_module, "_LAUNCH", code)
    problem = sandbox_module.landlock_problem.__wrapped__()
    assert expected in problem
    assert bool(problem) == bool(expected)


def test_a_landlock_that_does_not_start_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retryable elsewhere; no descriptor is left open."""
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(sys, "executable", "/no-such-python")
    with pytest.raises(SandboxUnavailable, match="did not start"):
        Landlock(7).spawn(["/bin/true"], Walls(), env={}, pass_fds=(), output_cap_bytes=0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_limits_of_landlock_are_said() -> None:
    """What it lacks beside bubblewrap, more of it on older kernels."""
    assert "names and sizes show" in sandbox_module.landlock_limits(7)
    assert "outrun the kill" in sandbox_module.landlock_limits(5)
    assert "outrun the kill" not in sandbox_module.landlock_limits(6)


def test_what_is_hidden_is_cut_out_of_what_shows(tmp_path: Path) -> None:
    """Neighbours get rules of their own, links none, and nothing hidden is under a rule to read."""
    for name in ("lib/json/a.py", "lib/test/b.py", "lib/deep/corpus/c.py", "lib/deep/d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    lib = tmp_path / "lib"
    (lib / "link").symlink_to(lib / "test")
    hidden = [str(lib / "test"), str(lib / "deep" / "corpus")]
    rules = dict(landlock.visible_in(str(lib), hidden))
    readable = {path for path, access in rules.items() if access == landlock._READ}
    assert readable == {str(lib / "json"), str(lib / "deep" / "d.py")}
    assert {path for path in rules if path not in readable} == {str(lib), str(lib / "deep")}
    assert list(landlock.visible_in(hidden[0], hidden)) == []


@pytest.mark.parametrize("machine", list(seccomp.ARCHITECTURES))
@pytest.mark.parametrize("is_old", [True, False])
def test_the_filter_is_well_formed(machine: str, is_old: bool) -> None:
    """Whole instructions, a plain return at the end, jumps that stay inside."""
    code = seccomp.program(machine, 4321, only_own_signals=is_old)
    lines = list(struct.iter_unpack("=HBBI", code))
    assert lines[-1] == (6, 0, 0, 0x7FFF0000)
    assert all(
        i + 1 + max(jt, jf) < len(lines) for i, (op, jt, jf, _) in enumerate(lines) if op & 5 == 5
    )
    assert any(k == 4321 for *_, k in lines)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("", "not installed"),
        ("#!/bin/sh\necho no permission >&2\nexit 1", "exit code 1: no permission"),
        ("not a program", "could not be tried"),
    ],
)
def test_what_keeps_bubblewrap_from_working_is_said(
    program: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried for real, and the failure is quoted."""
    probe = sandbox_module.bubblewrap_problem.__wrapped__
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    if program:
        (tmp_path / "bwrap").write_text(program)
        (tmp_path / "bwrap").chmod(0o755)
    assert expected in probe()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "needs Linux" in probe()


def test_a_bubblewrap_that_vanished_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retryable elsewhere; it is not the candidate's fault."""
    monkeypatch.setattr(sandbox_module, "_bwrap", lambda: str(tmp_path / "bwrap"))
    with pytest.raises(SandboxUnavailable, match="did not start"):
        sandbox_module.Bubblewrap().spawn(
            ["/bin/true"], Walls(), env={}, pass_fds=(), output_cap_bytes=0
        )


@pytest.fixture
def _cards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two cards whose numbers in CUDA (reversed), nvidia-smi and /dev differ, all nodes there."""
    cards = [hardware.Gpu(index=i, minor=i, name="card", uuid=f"GPU-{i}") for i in (1, 0)]
    fake = types.SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMinorNumber=lambda index: {0: 5, 1: 3}[index],
    )
    monkeypatch.setattr(hardware, "find_gpus", lambda: tuple(cards))
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(Path, "exists", lambda self: "tools" not in self.name)
    for cached in (sandbox_module._minor_number, nvml._handle):
        cached.cache_clear()
    yield
    for cached in (sandbox_module._minor_number, nvml._handle):
        cached.cache_clear()


@pytest.mark.usefixtures("_cards")
def test_a_card_is_bound_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes that CUDA needs and the card's own, by its minor number; none for the CPU."""
    names = [[path.name for path in device_nodes(f"cuda:{i}")] for i in (0, 1)]
    assert names[0] == ["nvidiactl", "nvidia3", "nvidia-uvm"]
    assert names[1] == ["nvidiactl", "nvidia5", "nvidia-uvm"]
    assert device_nodes("cpu") == device_nodes("mps") == []


@pytest.mark.usefixtures("_cards")
def test_without_walls_a_process_is_told_its_card_and_no_other(tmp_path: Path) -> None:
    """It calls the card its first, as behind walls, so two sessions would share card 0."""
    host = Host(
        config=Config(),
        dataset=Dataset(folder=tmp_path, holdout_path=tmp_path, manifest={}),
        sandbox=open_sandbox("none"),
        device="cuda:1",
        clock=SystemClock(),
        cache=CompileCache(tmp_path / "state" / "cache"),
    )
    assert host.env_inside("/cache")["CUDA_VISIBLE_DEVICES"] == "GPU-0"
    host.sandbox = sandbox_module.Bubblewrap()
    assert "CUDA_VISIBLE_DEVICES" not in host.env_inside("/cache")


@pytest.mark.usefixtures("_cards")
def test_a_card_that_nvml_does_not_know_is_found_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By /proc/driver/nvidia, as hardware reads it; by CUDA's number where no card is seen."""

    def refuse(index: int) -> int:
        raise RuntimeError("unknown")

    monkeypatch.setattr(sys.modules["pynvml"], "nvmlDeviceGetMinorNumber", refuse)
    assert device_nodes("cuda")[1].name == "nvidia1"
    sandbox_module._minor_number.cache_clear()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    nvml._handle.cache_clear()
    assert device_nodes("cuda")[1].name == "nvidia1"
    assert device_nodes("cuda:7")[1].name == "nvidia7"


def test_paths_from_outside_packages_are_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PYTHONPATH and the interpreter's folders are readable, outermost ones, links by name."""
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'real'}:{tmp_path / 'real' / 'inner'}:")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "link"))
    folders = runtime_folders.__wrapped__()
    assert tmp_path / "real" in folders
    assert tmp_path / "real" / "inner" not in folders
    assert tmp_path / "link" in folders
    real = [path for path in folders if not path.is_symlink()]
    assert not [(a, b) for a in real for b in real if a != b and a.is_relative_to(b)]


def test_binaries_in_real_root_folders_are_bound_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On distributions without a merged /usr, /bin and its like are folders."""
    monkeypatch.setattr(Path, "is_symlink", lambda self: False)
    options = sandbox_module._root_links()
    assert options[:3] == ["--ro-bind", "/bin", "/bin"]
