"""Commit, keep and revert in any order, against real git: the branch, the refs and the person's
checkout.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from autoresearch.system.git import Repository
from autoresearch.values.errors import TrustViolation

BRANCH = "refs/heads/autoresearch/main"


class KeepAndRevert(RuleBasedStateMachine):
    """A session's use of git, beside a plain model of it."""

    open_trials = Bundle("open_trials")

    @initialize()
    def begin(self) -> None:
        """A workspace with one commit and a research branch at it."""
        self.folder = tempfile.TemporaryDirectory()
        self.repository = Repository.create(Path(self.folder.name))
        (self.repository.path / "train.py").write_text("start\n")
        self.start = self.repository.commit_files(["train.py"], "start")
        self.repository.set_ref(BRANCH, self.start, None)
        self.kept = [self.start]
        self.texts = {self.start: "start\n"}
        self.trials: dict[str, str] = {}

    @rule(target=open_trials, text=st.text("ab\r\n", max_size=6))
    def propose(self, text: str) -> str:
        """A trial is a commit on top of the champion, kept alive by a ref of its own."""
        number = len(self.trials)
        parent = self.kept[-1]
        commit = self.repository.commit_file(parent, "train.py", text, f"trial {number}")
        ref = f"refs/autoresearch/main/trials/{number:04d}"
        self.repository.set_ref(ref, commit, None)
        self.texts[commit] = text
        self.trials[ref] = commit
        return commit

    @rule(commit=consumes(open_trials))
    def keep(self, commit: str) -> None:
        """The branch goes on to a trial whose parent is its head; an older trial is refused."""
        parent = self.repository.resolve(f"{commit}^")
        if parent == self.kept[-1]:
            self.repository.set_ref(BRANCH, commit, parent)
            self.kept.append(commit)
        else:
            with pytest.raises(TrustViolation):
                self.repository.set_ref(BRANCH, commit, parent)

    @rule(commit=consumes(open_trials))
    def revert(self, commit: str) -> None:
        """To revert is to leave the branch where it is; the trial stays readable."""
        assert self.repository.read(commit, "train.py") == self.texts[commit]

    @invariant()
    def nothing_is_lost(self) -> None:
        """Branch history, trial refs and texts are those of the model."""
        history = self.repository._text("rev-list", BRANCH).split()
        assert history == self.kept[::-1]
        assert self.repository.refs("refs/autoresearch") == self.trials
        assert self.repository.read(self.kept[-1], "train.py") == self.texts[self.kept[-1]]

    @invariant()
    def the_person_sees_nothing(self) -> None:
        """HEAD, checkout and index stay as they were."""
        assert self.repository.head() == self.start
        assert self.repository.current_branch() == "main"
        assert self.repository.dirty_files() == []

    def teardown(self) -> None:
        """Remove the workspace."""
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestKeepAndRevert = KeepAndRevert.TestCase
TestKeepAndRevert.settings = settings(max_examples=6, stateful_step_count=8, deadline=None)
