"""What every sandbox level promises, and what only walls can: one suite over all that work here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest

from autoresearch.system import sandbox as sandbox_module
from autoresearch.system.procs import guard_this_process
from autoresearch.system.sandbox import (
    LEVELS,
    Sandbox,
    Walls,
    device_nodes,
    hidden_inside,
    open_sandbox,
    probe_levels,
    runtime_folders,
)
from autoresearch.values.errors import SandboxUnavailable

GONE_IN_S = 20.0
WALLED = [level for level, works, _ in probe_levels() if works and level != "none"]
Python = Callable[..., str]


@pytest.fixture(params=[level for level, works, _ in probe_levels() if works])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """Every level that works here."""
    guard_this_process()
    return open_sandbox(request.param)


@pytest.fixture(params=WALLED or [pytest.param("", marks=pytest.mark.skip(reason="no walls here"))])
def walled(request: pytest.FixtureRequest) -> Sandbox:
    """Every level with walls that works here."""
    guard_this_process()
    return open_sandbox(request.param)


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
    alive = [
        p.pid
        for p in psutil.process_iter(["cmdline", "status"])
        if marker in " ".join(p.info["cmdline"] or []) and p.info["status"] != psutil.STATUS_ZOMBIE
    ]
    assert alive == []


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


def test_files_outside_do_not_exist(walled: Sandbox, tmp_path: Path) -> None:
    """Neither ours, nor the person's, nor the machine's secrets."""
    (tmp_path / "validation.bin").write_text("x")
    paths = [str(tmp_path / "validation.bin"), "/etc/passwd", "/etc/shadow", "/root/.ssh", "/home"]
    paths += ["/var", "/sys/class", "/boot", "/mnt"]
    source = f"""
        import os
        print([p for p in {paths!r} if os.path.exists(p) and (os.path.isfile(p) or os.listdir(p))])
    """
    assert execute(walled, source) == "[]"


def test_nothing_that_lasts_can_be_written(walled: Sandbox, tmp_path: Path) -> None:
    """Not even by root: read-only means it, and what can be written is private memory."""
    (tmp_path / "train.py").write_text("program")
    source = """
        import os, sys
        wrote = []
        for folder in ("/", "/usr", "/etc", "/trial", os.path.dirname(os.__file__), sys.prefix):
            try:
                open(os.path.join(folder, "planted"), "w").close()
                wrote.append(folder)
            except OSError:
                pass
        try:
            open("/trial/train.py", "a").close()
            wrote.append("train.py")
        except OSError:
            pass
        open("/tmp/left-behind", "w").close()
        open("/dev/shm/left-behind", "w").close()
        print(wrote)
    """
    walls = Walls(readable={tmp_path / "train.py": "/trial/train.py"})
    assert execute(walled, source, walls) == "[]"
    assert not Path("/tmp/left-behind").exists()
    look = "import os; print(os.listdir('/tmp'), os.listdir('/dev/shm'))"
    assert execute(walled, look, walls) == "[] []"


def test_there_is_no_network(walled: Sandbox) -> None:
    """No interface but a loopback that is its own, and no abstract socket of the host."""
    source = """
        import socket
        print([name for _, name in socket.if_nameindex() if name != "lo"])
        try:
            socket.create_connection(("127.0.0.1", PORT), timeout=2)
            print("connected")
        except OSError:
            print("refused")
        try:
            socket.socket(socket.AF_UNIX).connect("\\0autoresearch-test")
            print("connected")
        except OSError:
            print("refused")
    """
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind("\0autoresearch-test")
        local.listen()
        source = source.replace("PORT", str(server.getsockname()[1]))
        assert execute(walled, source).split() == ["[]", "refused", "refused"]


def test_other_processes_are_neither_seen_nor_touched(walled: Sandbox) -> None:
    """A pid namespace of its own, whose members are few."""
    source = f"""
        import os
        pids = [name for name in os.listdir("/proc") if name.isdigit()]
        print(len(pids) < 5, os.path.exists("/proc/{os.getpid()}/environ"))
    """
    if walled.level == "bubblewrap":
        assert execute(walled, source) == "True False"


def test_there_are_no_rights_to_mount_or_to_become_root(walled: Sandbox, tmp_path: Path) -> None:
    """Hidden folders cannot be uncovered, not even from a user namespace of one's own."""
    hidden = next(iter(hidden_inside(hidden_folders_here())), None)
    source = f"""
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
        print(outcome, os.listdir({str(hidden)!r}) if {hidden is not None} else [])
    """
    capabilities, _, rest = execute(walled, source, Walls(hidden=hidden_folders_here())).partition(
        "\n"
    )
    assert int(capabilities, 16) == 0
    outcome, _, listing = rest.rpartition(" ")
    assert json.loads(outcome)[0] == json.loads(outcome)[3] == -1
    assert json.loads(outcome)[2] == json.loads(outcome)[5] == -1
    assert listing == "[]"


def hidden_folders_here() -> list[Path]:
    """Corpus text of this machine's Pythons, as the referee hides it."""
    from autoresearch.data.pystdlib import hidden_folders

    return hidden_folders(runtime_folders())


def test_hidden_folders_look_empty(walled: Sandbox) -> None:
    """The corpus that comes from the standard library is gone, the rest works."""
    hidden = hidden_inside(hidden_folders_here())
    source = f"""
        import collections, json, os
        print([p for p in {[str(p) for p in hidden]!r} if os.path.exists(p) and os.listdir(p)])
    """
    assert execute(walled, source, Walls(hidden=hidden_folders_here())) == "[]"


def test_only_the_given_devices_are_there(walled: Sandbox) -> None:
    """No disk, no card that was not named."""
    source = "import os; print(sorted(os.listdir('/dev')))"
    names = set(json.loads(execute(walled, source).replace("'", '"')))
    allowed = {"console", "core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr"}
    assert names <= allowed | {"stdin", "stdout", "tty", "urandom", "zero"}


def test_private_memory_is_limited(walled: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that fills its /tmp gets an error, not the machine's memory."""
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
    """A session that is killed takes its candidates with it."""
    marker = f"lonely-{os.getpid()}-{time.monotonic_ns()}"
    source = f"""
import sys, time
from autoresearch.system.sandbox import Walls, open_sandbox
tree = open_sandbox({walled.level!r}).spawn(
    [sys.executable, "-S", "-c",
     "MARKER='{marker}'; print('up', flush=True); import time; time.sleep(60)"],
    Walls(), env={{}}, pass_fds=(), output_cap_bytes=4096)
while "up" not in tree.output.text():
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

    def alive() -> list[int]:
        return [
            p.pid
            for p in psutil.process_iter(["cmdline", "status"])
            if marker in " ".join(p.info["cmdline"] or [])
            and p.info["status"] != psutil.STATUS_ZOMBIE
        ]

    while alive() and time.monotonic() < limit:
        time.sleep(0.01)
    assert alive() == []


def test_levels_are_probed_best_first() -> None:
    """Every level is listed with a reason, the last always works."""
    levels = probe_levels()
    assert tuple(level for level, _, _ in levels) == LEVELS
    assert all(reason for _, _, reason in levels)
    assert levels[-1][:2] == ("none", True)


def test_auto_takes_the_best_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Walls where they can be had, else none; a level asked for by name is never replaced."""
    monkeypatch.setattr(sandbox_module, "bubblewrap_problem", lambda: "")
    assert open_sandbox("auto").level == open_sandbox("bubblewrap").level == "bubblewrap"
    monkeypatch.setattr(sandbox_module, "bubblewrap_problem", lambda: "it is forbidden here")
    assert open_sandbox("auto").level == open_sandbox("none").level == "none"
    with pytest.raises(SandboxUnavailable, match=r"forbidden here.*autoresearch doctor"):
        open_sandbox("bubblewrap")


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


def test_a_card_is_bound_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes that CUDA needs and the card's own; none for the CPU."""
    monkeypatch.setattr(Path, "exists", lambda self: "tools" not in self.name)
    names = [path.name for path in device_nodes("cuda:1")]
    assert "nvidia1" in names
    assert "nvidia0" not in names
    assert device_nodes("cpu") == device_nodes("mps") == []
    assert device_nodes("cuda")[1].name == "nvidia0"


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
