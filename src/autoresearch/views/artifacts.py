"""What leaves the workspace: a copy of a trial that stands on its own, nothing in it linked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from autoresearch.system.files import write_atomic
from autoresearch.values.errors import UserError
from autoresearch.values.records import Trial, to_json

WEIGHTS_NAME = "weights.safetensors"


def export_trial(runs_folder: Path, trial: Trial, source: str, folder: Path) -> list[Path]:
    """Copy a trial into a new or empty `folder`: train.py, trial.json, the artifacts of each run.

    Raises:
        UserError: the folder holds something already, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} is not a new or empty folder; choose another one: "
            f"`autoresearch export {trial.trial_id} FOLDER`"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "train.py", source)
        write_atomic(
            folder / "trial.json", json.dumps(to_json(trial), indent=2, default=str) + "\n"
        )
        for run in trial.runs:
            origin = runs_folder / run.artifacts
            if run.artifacts and origin.is_dir():
                shutil.copytree(origin, folder / f"run-{run.run_id:06d}", symlinks=True)
    except OSError as error:
        raise UserError(
            f"could not write the export to {folder}: {error.strerror}; choose another folder"
        ) from error
    return sorted(path for path in folder.rglob("*") if path.is_file())
