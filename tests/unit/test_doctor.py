"""The doctor: each fault on its own line, with the command that mends it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoresearch import doctor
from autoresearch.doctor import Check, run_checks
from autoresearch.system import hardware
from autoresearch.workspace import init

NAMES = [
    "system",
    "python",
    "torch",
    "device",
    "git",
    "sandbox",
    "disk",
    "workspace",
    "data",
    "agents",
]


@pytest.fixture
def diagnose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Check]]:
    """All checks by name, on a machine with a sandbox and no GPU, unless a test changes that."""
    monkeypatch.setattr(doctor, "probe_levels", lambda: [("bubblewrap", True, "it works")])
    monkeypatch.setattr(hardware, "find_gpus", lambda: ())
    monkeypatch.chdir(tmp_path)

    def run(folder: Path | None = None) -> dict[str, Check]:
        return {check.name: check for check in run_checks(folder)}

    return run


def _usage(free_gb: float) -> Callable[[Any], Any]:
    return lambda path: shutil._ntuple_diskusage(10**13, 0, int(free_gb * 2**30))


def test_one_line_a_check(diagnose: Callable[..., dict[str, Check]]) -> None:
    """All checks answer, in order, in one line each; what is wrong has a remedy."""
    checks = diagnose()
    assert list(checks) == NAMES
    for check in checks.values():
        assert "\n" not in check.detail
        assert check.detail
        assert check.status == "ok" or check.remedy


def test_windows(
    diagnose: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows itself is not supported; the Linux inside it is."""
    monkeypatch.setattr(doctor.sys, "platform", "win32")
    check = diagnose()["system"]
    assert check.status == "fail"
    assert "WSL2" in check.remedy


@pytest.mark.parametrize(
    ("version", "gpus", "status", "remedy"),
    [
        ("2.13.0+cpu", 0, "ok", ""),
        ("2.13.0+cpu", 1, "warn", "pip install --force-reinstall 'torch===2.13.0'"),
        ("2.9.1+cpu", 0, "fail", "pip install --upgrade 'torch>=2.11'"),
        ("", 0, "fail", "pip install torch"),
    ],
)
def test_torch(
    diagnose: Callable[..., dict[str, Check]],
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    gpus: int,
    status: str,
    remedy: str,
) -> None:
    """A missing or old torch fails; a CPU build beside a GPU is a pity."""
    card = hardware.Gpu(index=0, minor=0, name="card", uuid="GPU-a")
    monkeypatch.setattr(hardware, "torch_version", lambda: version)
    monkeypatch.setattr(hardware, "find_gpus", lambda: (card,) * gpus)
    check = diagnose()["torch"]
    assert (check.status, check.remedy) == (status, remedy)


def test_git_missing(
    diagnose: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without git there is no session."""
    monkeypatch.setenv("PATH", "")
    check = diagnose()["git"]
    assert check.status == "fail"
    assert "install" in check.remedy


def test_sandbox(
    diagnose: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than the best walls is a warning with what is there and why not more, not silence."""
    levels = [("bubblewrap", False, "bwrap is not installed"), ("landlock", True, "names show")]
    monkeypatch.setattr(doctor, "probe_levels", lambda: levels)
    check = diagnose()["sandbox"]
    assert check.status == "warn"
    assert "level landlock: names show. bubblewrap: bwrap is not installed" in check.detail
    assert check.remedy


@pytest.mark.parametrize(("free_gb", "status"), [(100, "ok"), (5, "warn"), (1, "fail")])
def test_disk(
    diagnose: Callable[..., dict[str, Check]],
    monkeypatch: pytest.MonkeyPatch,
    free_gb: float,
    status: str,
) -> None:
    """The free space that counts is the least of home and workspace."""
    monkeypatch.setattr(shutil, "disk_usage", _usage(free_gb))
    check = diagnose()["disk"]
    assert check.status == status
    assert f"{free_gb:.1f} GiB free" in check.detail


def test_locked_folders(
    tmp_path: Path, diagnose: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a session writes to: home, the workspace, and its folder of state; each has a remedy."""
    home, made = tmp_path / "home", init(tmp_path / "w", "demo")
    monkeypatch.setenv("AUTORESEARCH_HOME", str(home))
    for folder in (home, made.state_folder):
        folder.mkdir()
    for folder, remedy in {
        home: "export AUTORESEARCH_HOME",
        made.root: f"chmod u+w {made.root}, or copy the workspace",
        made.state_folder: f"chmod u+w {made.state_folder}, or",
    }.items():
        monkeypatch.setattr(os, "access", lambda path, mode, locked=folder: path != locked)
        check = diagnose(made.root)["disk"]
        assert (check.status, check.detail) == ("fail", f"{folder} cannot be written to")
        assert check.remedy.startswith(remedy)


def test_device_that_is_not_there(
    tmp_path: Path, diagnose: Callable[..., dict[str, Check]]
) -> None:
    """A setting that asks for a card that is not there is named before a session is started."""
    made = init(tmp_path / "space", "demo", {"trial": {"device": "cuda:3"}})
    check = diagnose(made.root)["device"]
    assert check.status == "fail"
    assert "'cuda:3'" in check.detail


def test_busy_device(
    diagnose: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card in use is worth a line."""
    monkeypatch.setattr(hardware, "is_busy", lambda device: "cuda:0 is used by process 7")
    assert diagnose()["device"].status == "warn"


def test_workspace(tmp_path: Path, diagnose: Callable[..., dict[str, Check]]) -> None:
    """No workspace, a good one, a dirty one, one with a mistake in its settings."""
    assert diagnose()["workspace"].remedy == "autoresearch init my-research"
    made = init(tmp_path / "space", "demo")
    assert diagnose(made.root)["workspace"].status == "ok"
    made.train_path.write_text("DEPTH = 1\n")
    assert diagnose(made.root)["workspace"].status == "warn"
    (made.root / "autoresearch.toml").write_text("x = 1\n")
    check = diagnose(made.root)["workspace"]
    assert (check.status, "unknown key 'x'" in check.detail) == ("fail", True)


def test_train_py_on_a_branch_that_has_begun(
    tmp_path: Path, diagnose: Callable[..., dict[str, Check]]
) -> None:
    """The champion's, which `train -m` leaves there, is fine; an edit is to be tried."""
    made = init(tmp_path / "space", "demo")
    baseline = made.repository.head()
    kept = made.repository.commit_file(baseline, "train.py", "DEPTH = 1\n", "an edit")
    made.repository.set_ref("refs/autoresearch/main/baseline", baseline, None)
    made.repository.set_ref("refs/heads/autoresearch/main", kept, None)
    made.train_path.write_text("DEPTH = 1\n")
    assert diagnose(made.root)["workspace"].status == "ok"
    made.train_path.write_text("DEPTH = 2\n")
    check = diagnose(made.root)["workspace"]
    assert (check.status, check.remedy) == ("warn", "autoresearch train -m 'what I tried'")


def test_data(
    tmp_path: Path, diagnose: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data that is not prepared is a warning with the command.

    A missing reader of parquet fails.
    """
    made = init(tmp_path / "space", "demo")
    check = diagnose(made.root)["data"]
    assert (check.status, check.remedy) == ("warn", "autoresearch prepare")
    made = init(tmp_path / "big", "h100")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    check = diagnose(made.root)["data"]
    assert (check.status, check.remedy) == ("fail", "pip install 'autoresearch[data]'")


def test_agents(
    tmp_path: Path, diagnose: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agents on the PATH are named; none is no fault."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert diagnose()["agents"].status == "ok"
    (tmp_path / "codex").write_text("#!/bin/sh\n")
    (tmp_path / "codex").chmod(0o755)
    assert diagnose()["agents"].detail == "codex"
