"""What every test gets: a home of its own, no git or autoresearch settings from outside, steady
hypothesis.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from autoresearch.system import hardware

sys.path.insert(0, str(Path(__file__).parent / "stubs"))

settings.register_profile("steady", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("steady")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs CUDA where there is none."""
    if all(item.get_closest_marker("gpu") is None for item in items):
        return
    if hardware.pick_device("auto").startswith("cuda"):
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device and a torch built for it"))


@pytest.fixture(autouse=True)
def _own_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Point all state at the test's own folder; drop the settings of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith(("AUTORESEARCH_", "GIT_", "HF_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
