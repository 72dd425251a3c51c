"""The lab of the end-to-end tests: a referee with a real scorer, candidates without torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "stubs"))

from lab import Lab, small_config


@pytest.fixture(scope="session")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A referee with stub candidates for all modules; the scorer imports torch once."""
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.close()


@pytest.fixture
def lab(shared_lab: Lab) -> Lab:
    """The shared referee with its settings as they were."""
    shared_lab.host.config = small_config()
    return shared_lab


@pytest.fixture
def torch_lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The shared referee with the product's candidates, which import torch."""
    monkeypatch.setattr(lab.host, "inside", "autoresearch.inside")
    monkeypatch.setattr(lab.host, "inside_path", None)
    return lab
