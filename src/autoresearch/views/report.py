"""results.tsv, progress.png and summary.md: what a person reads with the first coffee.

All three are pure functions of the history; `write_report` puts them side by side in a folder.
results.tsv has the five columns of the reference, for its scripts and its readers: there a trial
without a score has 0.000000, nowhere else, and our richer verdicts become its three.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autoresearch.search.history import History
from autoresearch.search.noise import Noise
from autoresearch.values.errors import UserError
from autoresearch.values.records import Trial, Verdict
from autoresearch.views.digest import FAILED, closed_trials, score_commit, score_trial, verdict_of
from autoresearch.views.summary import summary_markdown
from autoresearch.views.text import clean, short

if TYPE_CHECKING:
    from collections.abc import Iterable

    from autoresearch.values.config import Config
    from autoresearch.values.records import Measurement

_HEADER = "commit\tval_bpb\tmemory_gb\tstatus\tdescription"
_STATUS = {Verdict.KEEP: "keep", Verdict.NEAR_MISS: "discard", Verdict.DISCARD: "discard"}


def results_tsv(history: History) -> str:
    """One line for the baseline and one for each trial with a verdict, in order."""
    lines = [_HEADER]
    baseline = score_commit(history, history.baseline)
    if baseline is not None:
        runs = [run for run in history.runs if run.commit == history.baseline]
        lines.append(
            _line(history.baseline, baseline.mean_bpb, _memory_gb(runs), "keep", "baseline")
        )
    lines += [_trial_line(trial, history) for trial in closed_trials(history)]
    return "\n".join(lines) + "\n"


def _trial_line(trial: Trial, history: History) -> str:
    score, verdict = score_trial(trial, history), verdict_of(trial)
    status = _STATUS.get(verdict, "crash") if verdict else "crash"
    if verdict in FAILED or score is None:
        return _line(trial.commit, 0.0, 0.0, "crash", trial.description)
    return _line(trial.commit, score.mean_bpb, _memory_gb(trial.runs), status, trial.description)


def _line(
    commit: str | None, val_bpb: float, memory_gb: float, status: str, description: str
) -> str:
    return f"{short(commit)}\t{val_bpb:.6f}\t{memory_gb:.1f}\t{status}\t{clean(description)}"


def _memory_gb(runs: Iterable[Measurement]) -> float:
    return max((run.peak_memory_mb or 0.0 for run in runs), default=0.0) / 1024


def write_report(folder: Path, history: History, noise: Noise, config: Config) -> list[Path]:
    """Write the three files; gives their paths, summary.md first.

    Raises:
        UserError: the folder cannot be made, or not written to.
    """
    from autoresearch.system.files import write_atomic
    from autoresearch.views.plot import progress_png

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"could not make the folder {folder}: {error.strerror}; choose another one: "
            "`autoresearch report --out FOLDER`"
        ) from error
    pages: dict[str, str | bytes] = {
        "summary.md": summary_markdown(history, noise, config),
        "progress.png": progress_png(history, noise),
        "results.tsv": results_tsv(history),
    }
    for name, page in pages.items():
        write_atomic(folder / name, page)
    return [folder / name for name in pages]
