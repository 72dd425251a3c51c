"""Walls around untrusted code, in levels.

bubblewrap  own user, pid, network, ipc and mount namespaces: only bound paths exist, read-only;
home and /tmp are
            private memory; no network; the pid namespace takes every descendant with it when it is
            killed
none        no walls: a process like any other. The trial's row says so, and docs/threat-model.md
which invariants fall

Covered by bubblewrap: reading data, ledger and git; writing anywhere that lasts; talking to
anybody; surviving the kill. Not covered: the kernel itself, the GPU driver, timing side channels.
"""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from autoresearch.system.procs import ProcessTree, spawn
from autoresearch.values.errors import SandboxUnavailable

HOME = "/candidate"  # where untrusted code finds itself inside bubblewrap
LEVELS = ("bubblewrap", "none")  # best first
PRIVATE = ("/tmp", "/run", "/dev/shm")  # noqa: S108 - paths inside, each an empty tmpfs
PRIVATE_BYTES = 4 << 30  # of /tmp, and of the home


@dataclass(frozen=True, slots=True, kw_only=True)
class Walls:
    """What one sandboxed process may see, besides Python, its packages and ours.

    `readable` and `writable` map a path on this machine to its path inside (level none: they are
    the same paths, and `inside` translates). `hidden` are folders under bound paths that must look
    empty. `device_nodes` are bound as they are.
    """

    readable: Mapping[Path, str] = field(default_factory=dict)
    writable: Mapping[Path, str] = field(default_factory=dict)
    hidden: Sequence[Path] = ()
    device_nodes: Sequence[Path] = ()


class Sandbox(Protocol):
    """A way to start untrusted Python."""

    level: str

    def spawn(
        self,
        argv: Sequence[str],
        walls: Walls,
        *,
        env: Mapping[str, str],
        pass_fds: Sequence[int],
        output_cap_bytes: int,
    ) -> ProcessTree:
        """Start `argv` (argv[0] is a program's absolute path) behind `walls`.

        Raises:
            SandboxUnavailable: it cannot be started here.
        """

    def inside(self, walls: Walls, path: Path) -> str:
        """Where a readable or writable path of `walls` appears to the process."""


class Bubblewrap:
    """Namespaces by the program `bwrap`."""

    level = "bubblewrap"

    def spawn(
        self,
        argv: Sequence[str],
        walls: Walls,
        *,
        env: Mapping[str, str],
        pass_fds: Sequence[int],
        output_cap_bytes: int,
    ) -> ProcessTree:
        """Start `argv` in fresh namespaces that end with it or with us."""
        wrapped = [_bwrap(), *_bwrap_options(walls, env), "--", *argv]
        try:
            return spawn(
                wrapped,
                env={"PATH": os.defpath},
                pass_fds=pass_fds,
                output_cap_bytes=output_cap_bytes,
            )
        except OSError as error:
            raise SandboxUnavailable(
                f"bwrap did not start: {error}; run `autoresearch doctor`"
            ) from error

    def inside(self, walls: Walls, path: Path) -> str:
        """The path that the binding gives it."""
        return {**walls.readable, **walls.writable}[path]


class NoSandbox:
    """A plain child process with a scrubbed environment."""

    level = "none"

    def spawn(
        self,
        argv: Sequence[str],
        walls: Walls,
        *,
        env: Mapping[str, str],
        pass_fds: Sequence[int],
        output_cap_bytes: int,
    ) -> ProcessTree:
        """Start `argv` with nothing but its own session around it."""
        home = next(iter(walls.writable), None)
        try:
            return spawn(
                argv,
                env={**env, "HOME": str(home or "/nonexistent")},
                cwd=home,
                pass_fds=pass_fds,
                output_cap_bytes=output_cap_bytes,
            )
        except OSError as error:
            raise SandboxUnavailable(f"{argv[0]} did not start: {error}") from error

    def inside(self, walls: Walls, path: Path) -> str:
        """The same path."""
        return str(path)


def open_sandbox(level: str) -> Sandbox:
    """The sandbox of `level`; `auto` takes the best that works here.

    Raises:
        SandboxUnavailable: this level does not work here, with the reason and what to do.
    """
    if level == "none":
        return NoSandbox()
    problem = bubblewrap_problem()
    if not problem:
        return Bubblewrap()
    if level == "auto":
        return NoSandbox()
    raise SandboxUnavailable(
        f"sandbox level {level!r} is not to be had here: {problem}; "
        'run `autoresearch doctor`, or set level = "auto" under [sandbox]'
    )


def probe_levels() -> list[tuple[str, bool, str]]:
    """Every level, best first: (level, whether it works here, why or why not)."""
    problem = bubblewrap_problem()
    return [
        ("bubblewrap", not problem, problem or "namespaces work"),
        ("none", True, "always there, no walls"),
    ]


@lru_cache(maxsize=1)
def bubblewrap_problem() -> str:
    """Why bubblewrap does not work here; "" where it does.

    Tried for real: distributions differ in what they forbid.
    """
    if sys.platform != "linux":
        return f"bubblewrap needs Linux, this is {sys.platform}"
    if shutil.which("bwrap") is None:
        return (
            "the program bwrap is not installed (Debian, Ubuntu: sudo apt-get install bubblewrap)"
        )
    command = [_bwrap(), *_bwrap_options(Walls(), {}), "--", sys.executable, "-c", "pass"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bwrap could not be tried: {error}"
    if done.returncode:
        return f"bwrap failed with exit code {done.returncode}: {done.stderr.strip()[:300]}"
    return ""


def _bwrap() -> str:
    return shutil.which("bwrap") or "bwrap"


def _bwrap_options(walls: Walls, env: Mapping[str, str]) -> list[str]:
    options = [
        "--unshare-all",
        "--unshare-user",
        "--uid",
        "65534",
        "--gid",
        "65534",
        "--hostname",
        "sandbox",
    ]
    options += ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    own = {"HOME": HOME, "TMPDIR": PRIVATE[0]}
    for name, value in {"PATH": "/usr/bin:/bin", **env, **own}.items():
        options += ["--setenv", name, value]
    options += ["--proc", "/proc", "--dev", "/dev"]
    for folder in (*PRIVATE, HOME):
        options += ["--size", str(PRIVATE_BYTES), "--tmpfs", folder]
    for path in runtime_folders():
        options += ["--ro-bind", str(path), str(path)]
    options += _root_links()
    for path in hidden_inside(walls.hidden):
        options += ["--size", "4096", "--tmpfs", str(path), "--remount-ro", str(path)]
    for path, target in walls.readable.items():
        options += ["--ro-bind", str(path), target]
    for path, target in walls.writable.items():
        options += ["--bind", str(path), target]
    for node in walls.device_nodes:
        options += ["--dev-bind", str(node), str(node)]
    return [*options, "--remount-ro", "/", "--chdir", HOME]


@lru_cache(maxsize=1)
def runtime_folders() -> tuple[Path, ...]:
    """What Python, its packages, ours and a C compiler need, outermost first, none in another."""
    package = Path(__file__).resolve().parents[1]
    wanted = [Path("/usr"), Path(sys.prefix), Path(sys.base_prefix), package]
    wanted += [Path(folder) for folder in [*site.getsitepackages(), *_python_path()]]
    wanted += [Path("/usr/local/cuda"), Path("/usr/local/nvidia"), Path("/opt/rocm")]
    wanted += [Path(name) for name in ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/alternatives")]
    kept: list[Path] = []
    for path in sorted(
        {path.resolve() for path in wanted if path.exists()}, key=lambda path: len(path.parts)
    ):
        if not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    links = [Path(sys.prefix), Path(sys.base_prefix)]  # reached by their own names too
    return tuple([*kept, *(link for link in links if link.resolve() != link and link not in kept)])


def _python_path() -> list[str]:
    return [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]


def _root_links() -> list[str]:
    options: list[str] = []
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            options += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            options += ["--ro-bind", str(path), str(path)]
    return options


def hidden_inside(hidden: Sequence[Path]) -> list[Path]:
    """Those of `hidden` that a bound folder would show."""
    shown = runtime_folders()
    resolved = sorted({path.resolve() for path in hidden if path.is_dir()})
    outermost = [
        path for path in resolved if not any(other in path.parents for other in resolved)
    ]  # what is hidden already has nothing inside to be hidden
    return [path for path in outermost if any(path.is_relative_to(folder) for folder in shown)]


def device_nodes(device: str) -> list[Path]:
    """The device files that a process needs for `device` ("cuda:1"), and no other card's."""
    if not device.startswith("cuda"):
        return []
    ordinal = device.partition(":")[2] or "0"
    names = ["nvidiactl", f"nvidia{ordinal}", "nvidia-uvm", "nvidia-uvm-tools"]
    return [path for path in (Path("/dev") / name for name in names) if path.exists()]
