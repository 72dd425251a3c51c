"""Presets, refusals before anything is written, the settings file that `init` writes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.system import hardware
from autoresearch.values.config import Config, override, parse_config
from autoresearch.values.errors import UserError
from autoresearch.workspace import (
    choose_preset,
    init,
    render_config,
)

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trial": {"budget_s": 0.0}}, "preset 'demo' with your changes: trial.budget_s is 0.0"),
        ({"session": {"tag": "a b"}}, "session.tag is 'a b', expected a name made of letters"),
        ({"session": {"tag": "x.lock"}}, "session.tag is 'x.lock'"),
        ({"session": {"tag": "a..b"}}, "session.tag is 'a..b'"),
        ({"sesion": {"tag": "a"}}, "unknown key 'sesion', valid here: agent, artifacts"),
    ],
)
def test_init_checks_values_before_it_writes(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """A mistake leaves no half-made folder behind."""
    with pytest.raises(UserError, match=message):
        init(tmp_path / "space", "demo", changes)
    assert not (tmp_path / "space").exists()


@pytest.mark.parametrize(
    ("device", "memory_mb", "cores", "preset"),
    [
        ("mps", 0, 10, "mps"),
        ("cpu", 0, 2, "demo"),
        ("cpu", 0, 16, "laptop"),
        ("cuda:0", 81559, 16, "h100"),
        ("cuda:0", 143771, 16, "h100"),
        ("cuda:0", 46068, 16, "gpu-24gb"),
        ("cuda:0", 24564, 16, "gpu-24gb"),
        ("cuda:0", 12288, 16, "gpu-12gb"),
        ("cuda:0", 0, 16, "gpu-12gb"),
    ],
)
def test_auto_chooses_by_device_and_memory(
    monkeypatch: pytest.MonkeyPatch, device: str, memory_mb: float, cores: int, preset: str
) -> None:
    """`auto` names a preset that the machine can run."""
    gpu = hardware.Gpu(index=0, minor=0, name="card", uuid="GPU-a", memory_mb=memory_mb)
    monkeypatch.setattr(hardware, "pick_device", lambda setting: device)
    monkeypatch.setattr(hardware, "gpu_of", lambda name: gpu)
    monkeypatch.setattr(hardware, "num_usable_cores", lambda: cores)
    assert choose_preset() == preset


@given(
    path=TEXTS,
    hook=TEXTS,
    seed=st.integers(0, 2**62),
    budget=st.floats(0.5, 1e300),
    policy=st.sampled_from(["greedy", "screen"]),
)
def test_rendered_settings_read_back_equal(
    path: str, hook: str, seed: int, budget: float, policy: str
) -> None:
    """Whatever a value holds (quotes, emoji, DEL), the file that `init` writes means the same."""
    config = override(
        dataclasses.replace(Config(), preset=path),
        data={"path": path},
        session={"on_keep": hook},
        researcher={"seed": seed},
        trial={"budget_s": budget},
        judge={"policy": policy},
    )
    assert parse_config(render_config(config, about="a test")) == config


def test_rendered_settings_are_for_reading() -> None:
    """Every setting stands there with its help, in plain ASCII."""
    text = render_config(Config())
    for table in dataclasses.fields(Config):
        for field in (
            dataclasses.fields(getattr(Config(), table.name)) if table.name != "preset" else []
        ):
            assert any(
                line.startswith(f"{field.name} = ") and field.metadata["help"] in line
                for line in text.splitlines()
            )
    assert text.isascii()
