"""Walls around untrusted code, in levels.

bubblewrap  own user, pid, network, ipc and mount namespaces: only bound paths exist, read-only;
            home and /tmp are private memory; no network; the pid namespace takes every descendant
            with it when it is killed
landlock    the kernel refuses to open what is not named, sockets, and signals to others; no
            namespaces, so names and sizes of files can still be asked for (landlock.py)
none        no walls: a process like any other. The trial's row says so, and docs/threat-model.md
which invariants fall

Covered by both: reading data, ledger and git; writing anywhere that lasts; talking to
anybody; surviving the kill. Not covered: the kernel itself, the GPU driver, timing side channels.
"""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from autoresearch.system import hardware, landlock, nvml, seccomp
from autoresearch.system.procs import ProcessTree, spawn
from autoresearch.values.errors import SandboxUnavailable

HOME = "/candidate"  # where untrusted code finds itself inside bubblewrap
LEVELS = ("bubblewrap", "landlock", "none")  # best first
PRIVATE = ("/tmp", "/run", "/dev/shm")  # noqa: S108 - paths inside, each an empty tmpfs
PRIVATE_BYTES = 4 << 30  # of /tmp, and of the home
_ROOT_NAMES = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_LAUNCH = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r}); "
    "from autoresearch.system.landlock import main; main()"
)


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


class Sandbox:
    """A way to start untrusted Python; each level is a subclass."""

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
        try:
            return self._start(argv, walls, env, pass_fds, output_cap_bytes)
        except OSError as error:
            raise SandboxUnavailable(
                f"sandbox {self.level} did not start: {error}; run `autoresearch doctor`"
            ) from error

    def inside(self, walls: Walls, path: Path) -> str:
        """Where a readable or writable path of `walls` appears to the process."""
        return str(path)

    def _start(
        self,
        argv: Sequence[str],
        walls: Walls,
        env: Mapping[str, str],
        fds: Sequence[int],
        cap: int,
    ) -> ProcessTree:
        raise NotImplementedError


class Bubblewrap(Sandbox):
    """Namespaces by the program `bwrap`, that end with the process or with us."""

    level = "bubblewrap"

    def inside(self, walls: Walls, path: Path) -> str:
        """The path that the binding gives it."""
        return {**walls.readable, **walls.writable}[path]

    def _start(
        self,
        argv: Sequence[str],
        walls: Walls,
        env: Mapping[str, str],
        fds: Sequence[int],
        cap: int,
    ) -> ProcessTree:
        wrapped = [_bwrap(), *_bwrap_options(walls, env), "--", *argv]
        return spawn(wrapped, env={"PATH": os.defpath}, pass_fds=fds, output_cap_bytes=cap)


class Landlock(Sandbox):
    """Rules of the kernel for an ordinary process (landlock.py).

    `abi` is the version of Landlock to use, the kernel's or an older one.
    """

    level = "landlock"

    def __init__(self, abi: int) -> None:
        self.abi = abi

    def _start(
        self,
        argv: Sequence[str],
        walls: Walls,
        env: Mapping[str, str],
        fds: Sequence[int],
        cap: int,
    ) -> ProcessTree:
        held, leash = os.pipe()
        plan = {
            "abi": self.abi,
            "leash": held,
            "fds": list(fds),
            "runtime": [str(path) for path in (*runtime_folders(), *_root_folders())],
            "listed": [str(Path(__file__).resolve().parents[2])],
            "hidden": [str(path.resolve()) for path in walls.hidden],
            "readable": [str(path) for path in walls.readable],
            "writable": [str(path) for path in walls.writable],
            "devices": [str(path) for path in walls.device_nodes],
        }
        try:
            return spawn(
                [sys.executable, "-I", "-S", "-c", _LAUNCH, json.dumps(plan), *argv],
                env={"PATH": "/usr/bin:/bin", **env},
                pass_fds=[*fds, held],
                output_cap_bytes=cap,
                leash=leash,
            )
        except OSError:
            os.close(leash)
            raise
        finally:
            os.close(held)


class NoSandbox(Sandbox):
    """A plain child process with a scrubbed environment and its own session around it."""

    level = "none"

    def _start(
        self,
        argv: Sequence[str],
        walls: Walls,
        env: Mapping[str, str],
        fds: Sequence[int],
        cap: int,
    ) -> ProcessTree:
        home = next(iter(walls.writable), None)
        env = {"PATH": "/usr/bin:/bin", **env, "HOME": str(home or "/nonexistent")}
        return spawn(argv, env=env, cwd=home, pass_fds=fds, output_cap_bytes=cap)


_NO_CUDA = "CUDA does not start behind Landlock's filters (error 304 on an H100)"


def open_sandbox(level: str, device: str = "cpu") -> Sandbox:
    """The sandbox of `level` for processes that use `device`; `auto` takes the best that works.

    Raises:
        SandboxUnavailable: this level does not work here, with the reason and what to do.
    """
    problems: dict[str, Callable[[], str]] = {
        "bubblewrap": bubblewrap_problem,
        "landlock": landlock_problem if not device.startswith("cuda") else lambda: _NO_CUDA,
        "none": str,
    }
    if level == "auto":
        level = next(name for name in LEVELS if not problems[name]())
    elif problem := problems[level]():
        raise SandboxUnavailable(
            f"sandbox level {level!r} is not to be had here: {problem}; "
            'run `autoresearch doctor`, or set level = "auto" under [sandbox]'
        )
    if level == "landlock":
        return Landlock(landlock.abi())
    return Bubblewrap() if level == "bubblewrap" else NoSandbox()


def probe_levels() -> list[tuple[str, bool, str]]:
    """Every level, best first: (level, whether it works here, why or why not)."""
    bubblewrap, rules = bubblewrap_problem(), landlock_problem()
    return [
        ("bubblewrap", not bubblewrap, bubblewrap or "namespaces work"),
        ("landlock", not rules, rules or landlock_limits(landlock.abi())),
        ("none", True, "always there, no walls"),
    ]


def landlock_limits(abi: int) -> str:
    """What Landlock of this version gives, and what bubblewrap would give beyond it."""
    lacks = ["files outside are not read, but their names and sizes show", "no limit on disk use"]
    if abi < landlock.SCOPED_ABI:
        lacks += ["a process that forks without pause may outrun the kill (Linux 6.12 mends it)"]
    return f"kernel rules work (ABI {abi}); no namespaces: {'; '.join(lacks)}"


@lru_cache(maxsize=1)
def landlock_problem() -> str:
    """Why Landlock does not work here; "" where it does. Tried for real."""
    if sys.platform != "linux":
        return f"Landlock needs Linux, this is {sys.platform}"
    found = landlock.abi()
    if found < landlock.OLDEST_ABI:
        have = f"the kernel has version {found} of Landlock" if found else "no Landlock"
        return f"{have}; {landlock.OLDEST_ABI} is needed (Linux 6.2, `landlock` among lsm=)"
    if problem := seccomp.problem():
        return problem
    argv = [sys.executable, "-S", "-c", "pass"]
    tree = Landlock(found).spawn(argv, Walls(), env={}, pass_fds=(), output_cap_bytes=4096)
    code = tree.wait(20)
    tree.kill()
    return f"it failed with exit code {code}: {tree.output.text().strip()[:300]}" if code else ""


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


def _root_folders() -> list[Path]:
    """/lib and its like where they are no links into /usr."""
    folders = [Path("/", name) for name in _ROOT_NAMES]
    return [path for path in folders if path.is_dir() and not path.is_symlink()]


def _python_path() -> list[str]:
    return [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]


def _root_links() -> list[str]:
    options: list[str] = []
    for name in _ROOT_NAMES:
        path = Path("/", name)
        if path.is_symlink():
            options += ["--symlink", os.readlink(path), str(path)]
    for path in _root_folders():
        options += ["--ro-bind", str(path), str(path)]
    return options


def hidden_inside(hidden: Sequence[Path]) -> list[Path]:
    """Those of `hidden` that a bound folder would show."""
    shown = set(runtime_folders())
    resolved = {path.resolve() for path in hidden if path.is_dir()}
    outermost = [
        path for path in sorted(resolved) if resolved.isdisjoint(path.parents)
    ]  # what is hidden already has nothing inside to be hidden
    return [path for path in outermost if not shown.isdisjoint([path, *path.parents])]


def device_nodes(device: str) -> list[Path]:
    """The device files that a process needs for `device` ("cuda:1"), and no other card's."""
    if not device.startswith("cuda"):
        return []
    names = ["nvidiactl", f"nvidia{_minor_number(device)}", "nvidia-uvm", "nvidia-uvm-tools"]
    return [path for path in (Path("/dev") / name for name in names) if path.exists()]


@lru_cache(maxsize=16)
def _minor_number(device: str) -> int:
    """The N of /dev/nvidiaN, which is neither CUDA's count nor nvidia-smi's."""
    gpu = hardware.gpu_of(device)
    if gpu is None:
        return int(device.partition(":")[2] or 0)
    minor = nvml.minor_number(gpu.index)
    return gpu.minor if minor is None else minor
