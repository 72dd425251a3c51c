"""What NVML is asked for, and of which card, against a fake of its package."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator

import pytest

from autoresearch.system import hardware, nvml


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    """Three cards as NVML counts them, of which CUDA sees the last and the first, in that order."""
    package = types.SimpleNamespace(
        NVMLError=RuntimeError,
        NVML_CLOCK_SM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMinorNumber=lambda card: 7 - card,
        nvmlDeviceGetMemoryInfo=lambda card: types.SimpleNamespace(used=(card + 1) * 2**30),
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda card: 0x01 | 0x04 | 0x20,
        nvmlDeviceGetClockInfo=lambda card, kind: 1000 + card,
        nvmlDeviceGetTemperature=lambda card, kind: 60,
        nvmlDeviceGetPowerUsage=lambda card: 650_000,
        nvmlDeviceGetComputeRunningProcesses=lambda card: [types.SimpleNamespace(pid=40 + card)],
    )
    cards = tuple(hardware.Gpu(index=i, minor=i, name="card", uuid=f"GPU-{i}") for i in range(3))
    monkeypatch.setattr(hardware, "_cards_of_driver", lambda: cards)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-0")
    monkeypatch.setitem(sys.modules, "pynvml", package)
    _forget()
    yield package
    _forget()


def _forget() -> None:
    nvml._handle.cache_clear()
    nvml._index_of.cache_clear()


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(("device", "index"), [("cuda", 2), ("cuda:0", 2), ("cuda:1", 0)])
def test_the_card_that_cuda_uses_is_asked(device: str, index: int) -> None:
    """CUDA counts the visible cards, NVML all of them."""
    assert nvml.used_memory_mb(device) == 1024 * (index + 1)
    assert nvml.read_card(device) == nvml.Card(
        clock_mhz=1000 + index,
        temperature_c=60,
        power_w=650,
        throttle_reasons=("power cap", "heat"),
        pids=(40 + index,),
    )


@pytest.mark.usefixtures("fake")
def test_a_minor_number_is_asked_by_nvidia_smi_s_index() -> None:
    """Without CUDA's count in between."""
    assert [nvml.minor_number(index) for index in range(3)] == [7, 6, 5]


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("device", ["cuda:2", "cpu", "mps"])
def test_no_other_card_stands_in_for_one_that_is_not_there(device: str) -> None:
    """Nothing is known of it."""
    assert nvml.used_memory_mb(device) is None
    assert nvml.read_card(device) is None


@pytest.mark.parametrize(
    ("name", "ask"),
    [
        ("nvmlInit", nvml.used_memory_mb),
        ("nvmlDeviceGetHandleByIndex", nvml.read_card),
        ("nvmlDeviceGetMemoryInfo", nvml.used_memory_mb),
        ("nvmlDeviceGetClockInfo", nvml.read_card),
    ],
)
def test_what_nvml_refuses_is_unknown(
    fake: types.SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    ask: Callable[[str], object],
) -> None:
    """Whichever call it is that fails."""

    def refuse(*given: object) -> None:
        raise RuntimeError("not supported")

    monkeypatch.setattr(fake, name, refuse)
    assert ask("cuda") is None


@pytest.mark.usefixtures("fake")
def test_without_the_package_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.used_memory_mb("cuda") is nvml.read_card("cuda") is nvml.minor_number(0) is None
