"""What the commands put together: real ledger and git in a real workspace, a referee that computes
scores from a constant.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakereferee import SCORING_S, TRAIN, FakeReferee, Watcher

from autoresearch import arena, assemble
from autoresearch.cli import claims
from autoresearch.referee.scoring import UNKNOWN_LIMIT_S, Scoring
from autoresearch.search import confirm
from autoresearch.search.branch import Branch
from autoresearch.search.history import History
from autoresearch.search.ledger import Ledger
from autoresearch.system.git import Repository
from autoresearch.values.config import override
from autoresearch.values.errors import TrustViolation, UserError, WorkspaceError
from autoresearch.values.records import Measurement, Trial, Verdict
from autoresearch.workspace import Workspace, open_workspace

SETTINGS = """\
[judge]
calibration_runs = 2
implausible_gain_frac = 0.9
audit_frac = 0.0
policy = "greedy"
[session]
max_trials = 1
[researcher]
kind = "scripted"
script = "edits"
[confirm]
at_end = false
"""


class Bench:
    """A workspace and its referee, anew for each command."""

    def __init__(self, root: Path) -> None:
        self.root = root
        repository = Repository.create(root)
        (root / "autoresearch.toml").write_text(SETTINGS)
        (root / "edits").mkdir()
        (root / "edits" / "1.toml").write_text("[constants]\nSCORE = 1.8\n")
        (root / "train.py").write_text(TRAIN)
        repository.commit_files(["train.py"], "start")
        self.referee = FakeReferee()

    @property
    def workspace(self) -> Workspace:
        """As a command opens it."""
        return open_workspace(self.root)

    @property
    def history(self) -> History:
        """The ledger, read by somebody else."""
        with Ledger.read(self.workspace.ledger_path) as ledger:
            return ledger.history()

    @contextmanager
    def open_referee(self, *_: Any) -> Iterator[FakeReferee]:
        """Stands in for assemble.open_referee: what limits the scorer is forgotten."""
        self.referee.scoring, self.referee.limits_s = Scoring(self.referee.host), []
        yield self.referee

    def run(self, tag: str = "main") -> None:
        """`autoresearch run`."""
        config = override(self.workspace.config, session={"tag": tag})
        with assemble.open_session(self.workspace, config, Watcher()) as session:
            session.run()

    def write(self, score: float) -> str:
        """Edit train.py on the disk."""
        source = TRAIN.replace("SCORE = 2.0", f"SCORE = {score}")
        self.workspace.write_train(source)
        return source

    def try_out(self) -> tuple[Trial, bool]:
        """`autoresearch train -m`."""
        return assemble.try_out(self.workspace, self.workspace.config, "an edit", Watcher())

    def train_once(self, **more: Any) -> Measurement:
        """`autoresearch train` and `replay`."""
        source = self.workspace.read_train()
        words = {"commit": "none", "description": "as it is", "seed": 1, **more}
        return assemble.train_once(self.workspace, self.workspace.config, source, **words)

    def git(self, *arguments: str) -> None:
        """What a person does."""
        names = ("-c", "user.name=p", "-c", "user.email=p@localhost")
        subprocess.run(["git", *names, *arguments], cwd=self.root, check=True, capture_output=True)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A fresh workspace."""
    bench = Bench(tmp_path / "w")
    monkeypatch.setattr(assemble, "open_referee", bench.open_referee)
    return bench


def test_single_runs_are_scored_within_the_sessions_limit(bench: Bench) -> None:
    """`train`, `replay` and the arena's pairs; a script has a pace of its own."""
    bench.train_once()
    assert bench.referee.limits_s == [UNKNOWN_LIMIT_S]
    bench.run()
    bench.train_once()
    assert bench.referee.limits_s == [3 * SCORING_S]
    bench.train_once(is_script=True)
    assert bench.referee.limits_s == [UNKNOWN_LIMIT_S]
    folder = bench.root.rename(bench.root.with_name("tpe-01"))
    arena.run_pairs(folder, 1)
    assert bench.referee.limits_s == [3 * SCORING_S] * 2


def test_a_repository_without_the_ledgers_commits_is_not_gone_on_in(bench: Bench) -> None:
    """As in a shallow clone: in words, and neither a ref nor an event is made."""
    bench.run()
    sessions = len(bench.history.sessions)
    shutil.rmtree(bench.root / ".git")
    repository = Repository.create(bench.root)
    repository.commit_files(["autoresearch.toml", "train.py"], "another start")
    for go_on in (bench.run, bench.train_once):
        with pytest.raises(TrustViolation, match=r"commit \w{12} is not in .*from a copy"):
            go_on()
    assert repository.refs("refs/autoresearch") == {}
    assert len(bench.history.sessions) == sessions


@pytest.mark.parametrize("score", [1.8, 2.2])
def test_an_edit_made_while_a_trial_runs_is_left_alone(bench: Bench, score: float) -> None:
    """`train -m` puts the champion's train.py on the disk only where the edit that it tried is."""
    edit = bench.write(score)
    _, is_replaced = bench.try_out()
    assert is_replaced
    assert bench.workspace.read_train() == (edit if score < 2.0 else TRAIN)
    bench.write(score - 0.01)
    later: list[str] = []
    bench.referee.before = lambda spec: later.append(bench.write(1.5))
    _, is_replaced = bench.try_out()
    assert not is_replaced
    assert bench.workspace.read_train() == later[-1]
    bench.write(score - 0.02)
    bench.referee.before = lambda spec: bench.workspace.train_path.unlink(missing_ok=True)
    assert bench.try_out() == (bench.history.trials[-1], False)
    assert not bench.workspace.train_path.exists()


def test_an_edit_that_is_tried_confirms_nothing(bench: Bench) -> None:
    """One trial was asked for, not ten runs more because its session ends."""
    path = bench.root / "autoresearch.toml"
    path.write_text(SETTINGS.replace("at_end = false", "at_end = true"))
    bench.write(1.8)
    trial, _ = bench.try_out()
    assert trial.decision is not None
    assert trial.decision.verdict is Verdict.KEEP
    assert not bench.history.confirmations


def test_a_session_passes_over_no_edit(bench: Bench) -> None:
    """Committing one is of use before the branch begins, and on another branch."""
    bench.write(2.1)
    with pytest.raises(WorkspaceError, match="not committed"):
        bench.run()
    bench.git("commit", "-q", "-m", "my start", "train.py")
    bench.run()
    champion = bench.history.champion
    assert champion != bench.history.baseline
    bench.write(1.7)
    ways = r"train -m .*`git commit train.py -m 'my start'` and `autoresearch run --tag NEW`"
    with pytest.raises(WorkspaceError, match=f"{ways}.*git show {champion[:12]}:train.py"):
        bench.run()
    bench.git("commit", "-q", "-m", "my start", "train.py")
    with pytest.raises(WorkspaceError, match="with them: `autoresearch run"):
        bench.run()
    assert len(bench.history.sessions) == 1
    bench.run(tag="new")
    assert bench.history.branch == "autoresearch/new"
    assert bench.history.baseline == bench.workspace.repository.head()


def test_a_session_goes_on_whatever_champion_is_on_the_disk(bench: Bench) -> None:
    """An earlier one is no edit: sessions move on, the file on the disk does not."""
    bench.run()
    for score in (1.7, 1.6):
        bench.write(score)
        bench.try_out()
    for score in (2.0, 1.8, 1.7, 1.6):
        bench.write(score)
        bench.run()
    bench.write(1.65)
    with pytest.raises(WorkspaceError):
        bench.run()


def test_a_single_run_begins_the_branch_for_later_edits_too(bench: Bench) -> None:
    """`train` makes the commit of that day the baseline, so a start committed later is told."""
    bench.train_once()
    bench.write(1.8)
    bench.git("commit", "-q", "-m", "my start", "train.py")
    with pytest.raises(WorkspaceError, match=bench.history.baseline[:12]):
        bench.run()


def test_a_session_that_cannot_begin_leaves_nothing(bench: Bench) -> None:
    """Neither an event, nor a baseline that a later start would be held to."""
    (bench.root / "edits" / "1.toml").unlink()
    with pytest.raises(UserError, match="expected a folder with numbered"):
        bench.run()
    assert not bench.history.sessions
    assert Branch(bench.workspace.repository, "main").champion() is None


def test_a_confirmation_needs_no_researcher_and_minds_no_edit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It proposes nothing."""
    bench.run()
    (bench.root / "edits" / "1.toml").unlink()
    bench.write(1.5)
    monkeypatch.setattr(confirm, "agrees_on_holdout", lambda *_: True)
    claims.confirm(bench.root, as_json=True)
    assert bench.history.last_confirmed is not None


def test_the_baselines_file_is_no_edit_of_the_champions(bench: Bench) -> None:
    """Unedited, as a session leaves it on the disk, it is refused; edited, its owner is told."""
    bench.run()
    num_runs = len(bench.history.runs)
    with pytest.raises(UserError, match=r"baseline's program.*git show autoresearch/main:train.py"):
        bench.try_out()
    assert len(bench.history.runs) == num_runs
    notes: list[str] = []
    watcher = Watcher()
    watcher.note = notes.append
    lines = "# wider, deeper\nDEPTH = 2\nWIDTH = 3\n"
    champion = bench.workspace.repository.read(bench.history.champion, "train.py")
    for source in (lines + TRAIN, lines + champion):
        bench.workspace.write_train(source)
        assemble.try_out(bench.workspace, bench.workspace.config, "wider", watcher)
    (note,) = notes
    assert note.startswith("this edit is nearer to the baseline (lines changed: 3)")
    assert note.endswith("`git show autoresearch/main:train.py > train.py`")
