"""Is everything here that a session needs? One line a check, each with the command that mends it.

Nothing is changed, nothing is downloaded, torch is not imported: the checks take about a second.
"fail" means that a session would not start, "warn" that it would be slower, less safe or without
data yet.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autoresearch.search.branch import Branch
from autoresearch.system import hardware
from autoresearch.system.files import cache_home
from autoresearch.system.sandbox import probe_levels
from autoresearch.values.config import Config
from autoresearch.values.errors import AutoresearchError, WorkspaceError
from autoresearch.workspace import Workspace, open_workspace

AGENTS = ("claude", "codex", "gemini", "opencode", "aider")
_OLDEST_TORCH = (2, 11)
_OLDEST_GIT = (2, 30)
_DISK_NEEDED_GB = 2
_DISK_WISHED_GB = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the answer.

    `remedy` is the command that mends it, "" where nothing is to mend.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


def run_checks(folder: Path | None = None) -> list[Check]:
    """All checks, for the workspace that `folder` (the current one) is in, or for none."""
    workspace, about_workspace = _check_workspace(folder)
    config = workspace.config if workspace else Config()
    return [
        _check_system(),
        _check_python(),
        _check_torch(),
        _check_device(config),
        _check_git(),
        _check_sandbox(),
        _check_disk(workspace),
        about_workspace,
        _check_data(workspace),
        _check_agents(),
    ]


def _check_system() -> Check:
    name = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if sys.platform == "win32":
        remedy = "wsl --install, then install and run autoresearch inside WSL2"
        return Check(
            name="system",
            status="fail",
            detail=f"{name}: trials need Linux or macOS",
            remedy=remedy,
        )
    return Check(name="system", status="ok", detail=f"{name}, {hardware.num_usable_cores()} cores")


def _check_python() -> Check:
    return Check(
        name="python", status="ok", detail=f"{platform.python_version()} at {sys.executable}"
    )


def _check_torch() -> Check:
    version, build = hardware.torch_version(), hardware.torch_build()
    if not version:
        return Check(
            name="torch", status="fail", detail="not installed", remedy="pip install torch"
        )
    detail = f"{version} for {build}"
    oldest = ".".join(map(str, _OLDEST_TORCH))
    if _version(version) < _OLDEST_TORCH:
        remedy = f"pip install --upgrade 'torch>={oldest}'"
        return Check(
            name="torch",
            status="fail",
            detail=f"{detail}, expected {oldest} or newer",
            remedy=remedy,
        )
    if build == "cpu" and hardware.find_gpus():
        remedy = f"pip install --force-reinstall 'torch==={version.partition('+')[0]}'"
        detail += ": it cannot use the GPU that is here"
        return Check(name="torch", status="warn", detail=detail, remedy=remedy)
    return Check(name="torch", status="ok", detail=detail)


def _check_device(config: Config) -> Check:
    try:
        device = hardware.pick_device(config.trial.device)
    except AutoresearchError as error:
        remedy = "set trial.device to 'auto' in autoresearch.toml"
        return Check(name="device", status="fail", detail=str(error), remedy=remedy)
    gpu = hardware.gpu_of(device)
    detail = (
        device
        if gpu is None
        else f"{device}, {gpu.name}, {gpu.memory_mb / 1024:.0f} GiB, driver {gpu.driver}"
    )
    busy = hardware.is_busy(device)
    if busy:
        return Check(
            name="device",
            status="warn",
            detail=busy,
            remedy="nvidia-smi, then end what you can spare",
        )
    return Check(name="device", status="ok", detail=detail)


def _check_git() -> Check:
    try:
        done = subprocess.run(
            ["git", "--version"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        remedy = (
            "xcode-select --install" if sys.platform == "darwin" else "sudo apt-get install git"
        )
        return Check(name="git", status="fail", detail=f"could not be run: {error}", remedy=remedy)
    version = done.stdout.removeprefix("git version ").strip()
    if _version(version) < _OLDEST_GIT:
        oldest = ".".join(map(str, _OLDEST_GIT))
        detail = f"{version}, expected {oldest} or newer"
        return Check(name="git", status="fail", detail=detail, remedy="sudo apt-get install git")
    return Check(name="git", status="ok", detail=version)


def _check_sandbox() -> Check:
    levels = probe_levels()
    best, _, detail = next(level for level in levels if level[1])
    if best == levels[0][0]:
        return Check(name="sandbox", status="ok", detail=f"level {best}: {detail}")
    missing = "; ".join(f"{level}: {why}" for level, works, why in levels if not works)
    remedy = ""
    if sys.platform == "linux" and shutil.which("bwrap") is None:
        remedy = "sudo apt-get install bubblewrap"
    elif sys.platform == "linux":
        remedy = "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    return Check(
        name="sandbox", status="warn", detail=f"level {best}: {detail}. {missing}", remedy=remedy
    )


def _check_disk(workspace: Workspace | None) -> Check:
    places = [cache_home(), workspace.root if workspace else Path.cwd()]
    if workspace:
        places.append(workspace.state_folder)
    free = []
    for place in places:
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        free.append((shutil.disk_usage(there).free / 2**30, place, os.access(there, os.W_OK)))
    least_gb, place, _ = min(free)
    detail = f"{least_gb:.1f} GiB free at {place}"
    locked = [where for _, where, is_writable in free if not is_writable]
    if locked:
        remedy = f"chmod u+w {locked[0]}, or copy the workspace to where you may write"
        if locked[0] == places[0]:
            remedy = "export AUTORESEARCH_HOME=FOLDER, one that you may write to"
        return Check(
            name="disk", status="fail", detail=f"{locked[0]} cannot be written to", remedy=remedy
        )
    if least_gb >= _DISK_WISHED_GB:
        return Check(name="disk", status="ok", detail=detail)
    wished = f"{detail}; {_DISK_NEEDED_GB} are needed, {_DISK_WISHED_GB} are better"
    remedy = "autoresearch gc, or export AUTORESEARCH_HOME=FOLDER on a larger disk"
    status: Literal["warn", "fail"] = "fail" if least_gb < _DISK_NEEDED_GB else "warn"
    return Check(name="disk", status=status, detail=wished, remedy=remedy)


def _check_workspace(folder: Path | None) -> tuple[Workspace | None, Check]:
    try:
        workspace = open_workspace(folder)
    except WorkspaceError:
        place = folder or Path.cwd()
        check = Check(
            name="workspace",
            status="warn",
            detail=f"{place} is in none",
            remedy="autoresearch init my-research",
        )
        return None, check
    except AutoresearchError as error:
        remedy = "mend autoresearch.toml as the message says"
        return None, Check(name="workspace", status="fail", detail=str(error), remedy=remedy)
    remedy = "git commit train.py -m 'my start'"
    try:
        branch = Branch(workspace.repository, workspace.config.session.tag)
        if branch.champion():
            remedy = "autoresearch train -m 'what I tried'"
        workspace.require_start(branch)
    except AutoresearchError as error:
        return workspace, Check(name="workspace", status="warn", detail=str(error), remedy=remedy)
    detail = f"{workspace.root}, preset {workspace.config.preset}"
    return workspace, Check(name="workspace", status="ok", detail=detail)


def _check_data(workspace: Workspace | None) -> Check:
    from autoresearch.data.dataset import open_dataset  # these bring numpy along
    from autoresearch.data.hub import HUB_CORPORA

    if workspace is None:
        return Check(name="data", status="ok", detail="not checked: no workspace, so no corpus")
    settings = workspace.config.data
    if settings.corpus in HUB_CORPORA and importlib.util.find_spec("pyarrow") is None:
        detail = f"corpus {settings.corpus} comes as parquet files, and pyarrow is not installed"
        return Check(
            name="data", status="fail", detail=detail, remedy="pip install 'autoresearch[data]'"
        )
    try:
        dataset = open_dataset(settings, cache_home())
    except AutoresearchError as error:
        return Check(name="data", status="warn", detail=str(error), remedy="autoresearch prepare")
    return Check(name="data", status="ok", detail=f"{settings.corpus} at {dataset.folder}")


def _check_agents() -> Check:
    found = [name for name in AGENTS if shutil.which(name)]
    detail = (
        ", ".join(found)
        if found
        else f"none of {', '.join(AGENTS)} on the PATH; tpe and random need none"
    )
    return Check(name="agents", status="ok", detail=detail)


def _version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 13, 0) for "2.13.0+cpu"."""
    numbers = []
    for part in text.replace("+", ".").replace(" ", ".").split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
