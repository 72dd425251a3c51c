"""What every test gets: a home of its own, no git or autoresearch settings from outside, steady
hypothesis.
"""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from autoresearch.system import hardware, sandbox

sys.path.insert(0, str(Path(__file__).parent / "stubs"))

settings.register_profile("steady", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("steady")

MEMORY = Path("/dev/shm")
LEAST_FREE_BYTES = 1 << 30


def has_room_in_memory() -> bool:
    """Whether folders of tests can be kept in memory: git and ledgers wait for the disk a lot."""
    if not os.access(MEMORY, os.W_OK) or not hasattr(os, "ST_NOEXEC"):
        return False
    found = os.statvfs(MEMORY)
    is_roomy = found.f_bavail * found.f_frsize > LEAST_FREE_BYTES
    return is_roomy and not found.f_flag & os.ST_NOEXEC


if has_room_in_memory():
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Ours, which knows what is better done once."""
    from workers import Sharing

    return Sharing(config, log)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Free the memory that the folders of tests took, unless somebody may want to look at them."""
    is_worker = hasattr(session.config, "workerinput")
    made = session.config._tmp_path_factory._basetemp  # type: ignore[attr-defined]
    if made is not None and made.is_relative_to(MEMORY) and not is_worker and not exitstatus:
        shutil.rmtree(made, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep imports out of garbage collections: torch has a million objects and leaves none."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        gc.set_threshold(20_000)  # hypothesis makes much garbage, all of it small


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Toy tensors are slower on many threads, and the other cores have workers of their own."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _lasting() -> None:
    """What is left of earlier modules is in use: one collection says so, no other looks again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs CUDA where there is none."""
    if all(item.get_closest_marker("gpu") is None for item in items):
        return
    if hardware.pick_device("auto").startswith("cuda"):
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device and a torch built for it"))


@pytest.fixture
def bubblewrap() -> None:
    """Skip where it does not work: Landlock hides no names, and stops some attacks before we do."""
    if problem := sandbox.bubblewrap_problem():
        pytest.skip(f"needs bubblewrap: {problem}")


_numbers = itertools.count()


@pytest.fixture(scope="session")
def _homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tests have their homes."""
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(autouse=True)
def _own_world(monkeypatch: pytest.MonkeyPatch, _homes: Path) -> None:
    """Point all state at the test's own folder; drop the settings of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith(("AUTORESEARCH_", "GIT_", "HF_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AUTORESEARCH_HOME", str(_homes / str(next(_numbers))))
    monkeypatch.setenv("MPLBACKEND", "Agg")
