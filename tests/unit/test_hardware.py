"""Devices, machines and busy GPUs, against a fake nvidia-smi."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoresearch.system import hardware
from autoresearch.values.errors import UserError

CARDS = """\
0, NVIDIA H100 80GB HBM3, GPU-aaaa, 81559, 580.65, 9.0
1, NVIDIA GeForce RTX 4090, GPU-bbbb, 24564, 580.65, 8.9
"""
STATE = "41, 1980, 2619, 118.5, {used}, 7, 0x0000000000000004\n"


class Machine:
    """A machine with a torch build and a fake nvidia-smi, both of which a test may change."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(hardware, "_PROC_NVIDIA", folder / "proc")
        monkeypatch.setattr(hardware, "_has_amd", lambda: False)
        self.torch("2.13.0+cu130")

    def torch(self, version: str, platform: str = "linux", machine: str = "x86_64") -> None:
        """Install another torch, or move to another platform."""
        self._monkeypatch.setattr(hardware, "torch_version", lambda: version)
        self._monkeypatch.setattr(hardware.sys, "platform", platform)
        self._monkeypatch.setattr(hardware.platform, "machine", lambda: machine)

    def cards(self, text: str = CARDS, used: int = 3, pids: str = "") -> None:
        """Plug cards in, with so much memory in use and these processes on them."""
        script = self.folder / "nvidia-smi"
        script.write_text(
            "#!/bin/sh\n"
            f"case $1 in\n*index,name*) printf '{text}' ;;\n"
            f"*temperature*) printf '{STATE.format(used=used)}' ;;\n"
            f"*compute-apps*) printf '{pids}' ;;\nesac\n"
        )
        script.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A Linux machine with a CUDA build of torch and no card yet."""
    return Machine(tmp_path, monkeypatch)


def test_auto_takes_the_best_that_torch_can_use(machine: Machine) -> None:
    """A card counts only with a build that can use it; a Mac has MPS; else the processor."""
    assert hardware.pick_device("auto") == "cpu"
    machine.cards()
    assert hardware.pick_device("auto") == "cuda:0"
    machine.torch("2.13.0+cpu")
    assert hardware.pick_device("auto") == "cpu"
    machine.torch("2.13.0", "darwin", "arm64")
    assert hardware.pick_device("auto") == "mps"
    machine.torch("2.13.0", "darwin", "x86_64")
    assert hardware.pick_device("auto") == "cpu"


def test_amd_cards_are_cuda_to_torch(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """ROCm builds use the same device names."""
    machine.torch("2.13.0+rocm6.4")
    monkeypatch.setattr(hardware, "_has_amd", lambda: True)
    assert (hardware.torch_build(), hardware.pick_device("auto")) == ("rocm", "cuda:0")
    assert hardware.pick_device("cuda:1") == "cuda:1"


@pytest.mark.parametrize(
    ("version", "platform", "build"),
    [
        ("2.13.0", "linux", "cuda"),
        ("2.13.0+cpu", "linux", "cpu"),
        ("2.13.0+cu130", "win32", "cuda"),
        ("2.13.0", "win32", "cpu"),
        ("", "linux", ""),
    ],
)
def test_torch_build(machine: Machine, version: str, platform: str, build: str) -> None:
    """The build is read off the version, as the packages name it."""
    machine.torch(version, platform)
    assert hardware.torch_build() == build


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "cuda:2",
            r"'cuda:2', but CUDA sees these cards: NVIDIA H100 .*, NVIDIA GeForce .*number 2",
        ),
        ("tpu", r"trial.device is 'tpu', expected auto, cpu, mps, cuda or cuda:N"),
        ("cuda:x", r"trial.device is 'cuda:x', expected auto"),
        ("mps", r"trial.device is 'mps', but torch '2.13.0\+cu130' .* has no MPS"),
    ],
)
def test_devices_that_are_not_there(machine: Machine, setting: str, message: str) -> None:
    """The message names the setting, what is there, and what to run."""
    machine.cards()
    with pytest.raises(UserError, match=message):
        hardware.pick_device(setting)


def test_a_card_without_the_build(machine: Machine) -> None:
    """Asking for CUDA with a CPU build of torch is a mistake, not a slow run."""
    machine.cards()
    assert hardware.pick_device("cuda") == "cuda:0"
    machine.torch("2.13.0+cpu")
    with pytest.raises(UserError, match=r"installed torch is '2.13.0\+cpu'; expected a build"):
        hardware.pick_device("cuda")


@pytest.mark.parametrize(
    ("visible", "names"),
    [("1", ["GPU-bbbb"]), ("GPU-b,0", ["GPU-bbbb", "GPU-aaaa"]), ("", []), ("0,7,1", ["GPU-aaaa"])],
)
def test_cuda_visible_devices(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]
) -> None:
    """Cards are counted as CUDA counts them: in the order given, up to the first mistake."""
    machine.cards()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.uuid for gpu in hardware.find_gpus()] == names


def test_cards_without_nvidia_smi(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the driver's own files are enough to find the card and its device node."""
    folder = machine.folder / "proc" / "0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text(
        "Model: \t NVIDIA H100\nGPU UUID: \t GPU-c\nDevice Minor: 0\n"
    )
    assert hardware.find_gpus() == ()  # no /dev/nvidia0 here
    monkeypatch.setattr(hardware.Path, "exists", lambda path: True)
    assert [(gpu.minor, gpu.uuid) for gpu in hardware.find_gpus()] == [(0, "GPU-c")]


def test_describe_and_state(machine: Machine) -> None:
    """A trial's row says what it ran on and in which state."""
    machine.cards(used=500)
    about = hardware.describe_machine("cuda:1")
    assert about["gpu"] == "NVIDIA GeForce RTX 4090"
    assert about["gpu_memory_mb"] == 24564
    assert about["cores"] >= about["cores_usable"] >= 1
    state = hardware.read_state("cuda:1")
    assert state["gpu_clock_mhz"] == 1980
    assert state["gpu_throttle_reasons"] == "0x0000000000000004"
    assert state["gpu_pids"] == []
    assert "gpu" not in hardware.describe_machine("cpu")
    assert "load_average" in hardware.read_state("cpu")


def test_reading_never_fails(machine: Machine) -> None:
    """A broken nvidia-smi costs facts, not the session."""
    script = machine.folder / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 'Failed to initialize NVML'\n")
    script.chmod(0o755)
    assert hardware.find_gpus() == ()
    assert "gpu_clock_mhz" not in hardware.read_state("cuda:0")
    script.write_text("#!/bin/sh\nexit 9\n")
    assert hardware.is_busy("cuda:0") == ""


def test_busy(machine: Machine) -> None:
    """Foreign processes count, ours do not; hidden ones show by their memory."""
    machine.cards(used=3)
    assert hardware.is_busy("cpu") == ""
    assert hardware.is_busy("cuda:0") == ""
    machine.cards(used=40000, pids=r"1234\n77\n")
    assert "used by process 77, 1234, 40000 MiB in use" in hardware.is_busy("cuda:0")
    assert "used by process 77," in hardware.is_busy("cuda:0", own_pids={1234})
    assert hardware.is_busy("cuda:0", own_pids={1234, 77}) == ""
    machine.cards(used=40000)
    assert "processes not seen from here" in hardware.is_busy("cuda:0")
    assert hardware.is_busy("cuda:0", own_pids={1}) == ""
