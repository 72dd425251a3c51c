"""What machine this is, what state it is in, and whether somebody else is using its GPU.

Everything here works without torch: the GPU is seen through `nvidia-smi` or /proc/driver/nvidia,
the torch build through the metadata of the installed package. What cannot be read is left out;
reading never fails.

A device is named as torch names it: "cpu", "mps", "cuda:N", N counting within CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoresearch.values.errors import UserError

_NVIDIA_SMI_LIMIT_S = 20
_FOREIGN_MEMORY_MB = 1024  # a desktop's own windows stay under this
_PROC_NVIDIA = Path("/proc/driver/nvidia/gpus")
_UNREADABLE = (OSError, RuntimeError, AttributeError, ValueError)  # by psutil, on some machine
_STATE_QUERY = {
    "gpu_temperature_c": "temperature.gpu",
    "gpu_clock_mhz": "clocks.sm",
    "gpu_memory_clock_mhz": "clocks.mem",
    "gpu_power_w": "power.draw",
    "gpu_memory_used_mb": "memory.used",
    "gpu_utilization_percent": "utilization.gpu",
    "gpu_throttle_reasons": "clocks_throttle_reasons.active",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One NVIDIA card. `index` is nvidia-smi's, `minor` the N of /dev/nvidiaN.

    Zero or "" is unknown.
    """

    index: int
    minor: int
    name: str
    uuid: str
    memory_mb: float = 0.0
    driver: str = ""
    capability: float = 0.0


def torch_version() -> str:
    """The version of the installed torch, such as "2.13.0+cpu", from its metadata.

    "" when there is none.
    """
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""


def torch_build() -> str:
    """What the installed torch was built for: "cpu", "cuda", "rocm", "mps", or "" when there is
    none.
    """
    _, _, local = torch_version().partition("+")
    if not torch_version():
        return ""
    if local.startswith(("cpu", "rocm")):
        return local.rstrip("0123456789.")
    if sys.platform == "darwin":
        return "mps" if platform.machine() == "arm64" else "cpu"
    # PyPI's Linux wheels carry no local version: those for x86_64 and aarch64 need CUDA packages,
    # Windows has none
    return "cuda" if local.startswith("cu") or sys.platform == "linux" else "cpu"


def find_gpus() -> tuple[Gpu, ...]:
    """The NVIDIA cards that CUDA may use, in the order in which torch counts them."""
    cards = _cards_of_driver()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return cards
    chosen = []
    for name in filter(None, (part.strip() for part in visible.split(","))):
        match = [
            c
            for c in cards
            if name == str(c.index) or (not name.isdigit() and c.uuid.startswith(name))
        ]
        if not match:
            break  # as CUDA does: nothing after the first invalid name counts
        chosen.append(match[0])
    return tuple(chosen)


def pick_device(setting: str) -> str:
    """The device that a setting means here: "cpu", "mps" or "cuda:N".

    Raises:
        UserError: the setting names a device that is not there, or that the installed torch cannot
        use.
    """
    build = torch_build()
    if setting == "auto":
        if build == "mps":
            return "mps"
        return (
            "cuda:0"
            if (build == "cuda" and find_gpus()) or (build == "rocm" and _has_amd())
            else "cpu"
        )
    if setting == "cpu":
        return "cpu"
    if setting == "mps":
        if build == "mps":
            return "mps"
        raise UserError(
            f"trial.device is 'mps', but torch {torch_version()!r} on {platform.system()} "
            f"{platform.machine()} has no "
            "MPS; expected a Mac with Apple silicon. Set it to 'auto' in autoresearch.toml"
        )
    return _pick_cuda(setting, build)


def describe_machine(device: str) -> dict[str, Any]:
    """What does not change during a session: processor, memory, software, and the GPU if `device`
    is one.
    """
    import psutil

    machine: dict[str, Any] = {
        "device": device,
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "cores_usable": num_usable_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch_version(),
    }
    gpu = gpu_of(device)
    if gpu is not None:
        machine |= {"gpu": gpu.name, "gpu_uuid": gpu.uuid, "gpu_memory_mb": gpu.memory_mb}
        machine |= {
            "gpu_driver": gpu.driver,
            "gpu_capability": gpu.capability,
            "gpu_minor": gpu.minor,
        }
    return machine


def num_usable_cores() -> int:
    """Cores that this process may run on: in a container often fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpu_of(device: str) -> Gpu | None:
    """The NVIDIA card behind a device name; None for other devices and for missing cards."""
    kind, _, number = device.partition(":")
    cards = find_gpus() if kind == "cuda" else ()
    index = int(number or 0)
    return cards[index] if index < len(cards) else None


def read_state(device: str) -> dict[str, Any]:
    """What changes from minute to minute: load, clocks, temperature, memory. Never raises."""
    import psutil

    state: dict[str, Any] = {}
    with contextlib.suppress(*_UNREADABLE):
        state["load_average"] = round(os.getloadavg()[0], 2)
    with contextlib.suppress(*_UNREADABLE):
        state["memory_available_mb"] = psutil.virtual_memory().available // 2**20
    with contextlib.suppress(*_UNREADABLE):
        frequency = psutil.cpu_freq()
        if frequency is not None:
            state["cpu_mhz"] = round(frequency.current)
    gpu = gpu_of(device)
    if gpu is not None:
        state |= _gpu_state(gpu)
    return state


def is_busy(device: str, own_pids: Collection[int] = ()) -> str:
    """Why the device is not ours alone, in plain words; "" when it is.

    Only GPUs are judged: a busy processor is what comparing runs next to each other in time is for.
    `own_pids` are processes of ours that may hold memory on the card.
    """
    gpu = gpu_of(device)
    if gpu is None:
        return ""
    state = _gpu_state(gpu)
    others = [pid for pid in state.get("gpu_pids", []) if pid not in own_pids]
    used_mb = state.get("gpu_memory_used_mb", 0.0)
    if others:
        named = ", ".join(map(str, others))
        return f"{device} ({gpu.name}) is used by process {named}, {used_mb:.0f} MiB in use"
    # A container hides other processes; the memory they hold still shows, if none of it is ours.
    if not own_pids and used_mb > _FOREIGN_MEMORY_MB:
        return f"{device} ({gpu.name}) has {used_mb:.0f} MiB in use by processes not seen from here"
    return ""


def _pick_cuda(setting: str, build: str) -> str:
    kind, _, number = setting.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise UserError(
            f"trial.device is {setting!r}, expected auto, cpu, mps, cuda or cuda:N; mend "
            "autoresearch.toml"
        )
    index = int(number or 0)
    if build == "rocm" and _has_amd():
        return f"cuda:{index}"
    cards = find_gpus()
    if index >= len(cards):
        seen = ", ".join(card.name for card in cards) or "none"
        raise UserError(
            f"trial.device is {setting!r}, but CUDA sees these cards: {seen}; expected one with "
            f"number {index}. Run `nvidia-smi`, or set trial.device to 'auto' in autoresearch.toml"
        )
    if build != "cuda":
        raise UserError(
            f"trial.device is {setting!r}, but the installed torch is {torch_version()!r}; "
            "expected a build for CUDA. Run `autoresearch doctor`, or set trial.device to 'cpu' in "
            "autoresearch.toml"
        )
    return f"cuda:{index}"


def _has_amd() -> bool:
    return Path("/dev/kfd").exists()


def _cards_of_driver() -> tuple[Gpu, ...]:
    minors = _minors_by_uuid()
    cards = []
    for row in _nvidia_smi("--query-gpu=index,name,uuid,memory.total,driver_version,compute_cap"):
        if len(row) == 6:
            index = int(_number(row[0]) or 0)
            card = Gpu(
                index=index,
                minor=minors.get(row[2], index),
                name=row[1],
                uuid=row[2],
                memory_mb=_number(row[3]) or 0.0,
                driver=row[4],
                capability=_number(row[5]) or 0.0,
            )
            cards.append(card)
    if not cards:  # a container without nvidia-smi still has the driver's own files
        cards = [
            Gpu(index=i, minor=minor, name="NVIDIA GPU", uuid=uuid)
            for i, (uuid, minor) in enumerate(sorted(minors.items(), key=lambda item: item[1]))
            if Path(f"/dev/nvidia{minor}").exists()
        ]
    return tuple(cards)


def _minors_by_uuid() -> dict[str, int]:
    found = {}
    with contextlib.suppress(OSError):
        for file in sorted(_PROC_NVIDIA.glob("*/information")):
            lines = (line.partition(":") for line in file.read_text(errors="replace").splitlines())
            facts = {key.strip(): value.strip() for key, _, value in lines}
            if facts.get("Device Minor", "").isdigit():
                found[facts.get("GPU UUID", str(file))] = int(facts["Device Minor"])
    return found


def _gpu_state(gpu: Gpu) -> dict[str, Any]:
    chosen = f"--id={gpu.index}"
    state: dict[str, Any] = {}
    rows = _nvidia_smi("--query-gpu=" + ",".join(_STATE_QUERY.values()), chosen)
    for name, text in zip(_STATE_QUERY, rows[0] if rows else [], strict=False):
        value = _number(text)
        if name == "gpu_throttle_reasons" or value is not None:
            state[name] = text if value is None else value
    pids = [_number(row[0]) for row in _nvidia_smi("--query-compute-apps=pid", chosen)]
    state["gpu_pids"] = sorted(int(pid) for pid in pids if pid is not None)
    return state


def _nvidia_smi(*arguments: str) -> list[list[str]]:
    """The rows that nvidia-smi prints; none where it is missing, hangs or fails."""
    command = ["nvidia-smi", *arguments, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_LIMIT_S,
            check=True,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C meant for the session would end it without an answer
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [
        [cell.strip() for cell in line.split(",")]
        for line in done.stdout.splitlines()
        if line.strip()
    ]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
            return done.stdout.strip()
    return platform.processor() or platform.machine()
