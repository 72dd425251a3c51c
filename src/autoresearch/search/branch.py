"""The research branch in git: its head is the champion, and every trial's commit stays reachable.

Only refs and objects are written; the user's checkout, index and branch are never touched.
"""

from __future__ import annotations

from pathlib import Path

from autoresearch.search.history import History
from autoresearch.system.git import Repository
from autoresearch.values.errors import TrustViolation, WorkspaceError
from autoresearch.values.records import Proposal

TRAIN_NAME = "train.py"


class Branch:
    """refs/heads/autoresearch/TAG and refs/autoresearch/TAG/trials/*."""

    def __init__(self, repository: Repository, tag: str) -> None:
        self._repository = repository
        self.name = f"autoresearch/{tag}"
        self.head_ref = f"refs/heads/{self.name}"
        self.baseline_ref = f"refs/{self.name}/baseline"

    def start(self) -> str:
        """The commit that the branch starts from: the user's HEAD where it is new, else its own
        first one.

        Raises:
            WorkspaceError: the user has the research branch checked out.
        """
        if self._repository.current_branch() == self.name:
            raise WorkspaceError(
                f"{self.name} is checked out, and a session moves it; run `git switch main` first"
            )
        baseline = self._repository.resolve(self.baseline_ref)
        if baseline is None:
            baseline = self._repository.head()
            self._repository.set_ref(self.baseline_ref, baseline, None)
        return baseline

    def require_commits(self, history: History) -> None:
        """Refuse to go on, or to begin anew, where the ledger's baseline or champion is gone.

        Raises:
            TrustViolation: it is.
        """
        for commit in filter(None, (history.baseline, history.champion)):
            self._repository.require(commit)

    def read(self, commit: str) -> str:
        """train.py of a commit."""
        return self._repository.read(commit, TRAIN_NAME)

    def champion(self) -> str | None:
        """The commit that the next session goes on from; None before the first."""
        return self._repository.resolve(self.head_ref) or self._repository.resolve(
            self.baseline_ref
        )

    def head_source(self) -> str | None:
        """train.py of the champion that the branch is at; None before its first session."""
        champion = self.champion()
        return self.read(champion) if champion else None

    def has_held(self, source: str) -> bool:
        """Whether `source` is train.py of the baseline or of a champion since."""
        champion = self.champion()
        if champion is None:
            return False
        baseline = self._repository.resolve(self.baseline_ref) or champion
        commits = [*self._repository.commits_since(baseline, champion), baseline]
        return any(self.read(commit) == source for commit in commits)

    def export(self, commit: str, folder: Path) -> None:
        """Write a commit's files into a folder that knows nothing of the branch."""
        self._repository.export(commit, folder)

    def diff(self, old: str, new: str) -> str:
        """What a commit changed in train.py."""
        return self._repository.diff(old, new, TRAIN_NAME)

    def commit(self, proposal: Proposal) -> str:
        """A commit of the proposal on top of its parent, reachable by nothing yet."""
        message = f"{proposal.description}\n\nProposed-by: {proposal.researcher}\n"
        return self._repository.commit_file(proposal.parent, TRAIN_NAME, proposal.source, message)

    def trial_ref(self, trial_id: int) -> str:
        """The ref that keeps a trial's commit reachable."""
        return f"refs/{self.name}/trials/{trial_id:04d}"

    def keep_reachable(self, trial_id: int, commit: str) -> None:
        """Give a trial's commit a ref of its own, for good."""
        ref = self.trial_ref(trial_id)
        before = self._repository.resolve(ref)
        if before != commit:
            self._repository.set_ref(ref, commit, before)

    def follow(self, history: History) -> None:
        """Move the branch to the ledger's champion, from whichever earlier champion it is at.

        Raises:
            TrustViolation: it is at a commit that never was champion: somebody else moved it.
        """
        for trial in history.trials:
            self.keep_reachable(trial.trial_id, trial.commit)
        at = self._repository.resolve(self.head_ref)
        if at == history.champion:
            return
        known = {history.baseline, *(crown.commit for crown in history.crowns)}
        if at is not None and at not in known:
            raise TrustViolation(
                f"{self.head_ref} is at {at[:12]}, which never was the champion; the ledger's is "
                f"{history.champion[:12]}. Restore it: `git update-ref {self.head_ref} "
                f"{history.champion}`"
            )
        self._repository.set_ref(self.head_ref, history.champion, at)
