"""A workspace's git repository, through plumbing commands only.

Commits are made from blobs and a private temporary index, and refs move by compare-and-swap. The
person's checkout, index and current branch are never read for content and never written, with one
exception: `commit_files`, which makes the first commit of a workspace that has just been created.

Nothing of the machine's git set-up leaks in: hooks and signing are off, global and system settings
are not read, the author is our own, and variables such as GIT_DIR (which a hook exports) are
dropped. Objects and refs are flushed to the disk before a call returns, so that a ledger row never
names a commit that a power cut took away.

Refs: branch refs/heads/autoresearch/TAG is the champion; every trial stays at
refs/autoresearch/TAG/trials/NNNN.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from autoresearch.values.errors import AutoresearchError, TrustViolation, UserError, WorkspaceError

_IDENTITY = ("autoresearch", "autoresearch@localhost")
_SETTINGS = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.quotePath": "false",
    "core.autocrlf": "false",
    "core.fsync": "all",
    "commit.gpgSign": "false",
    "gc.auto": "0",
}
_KEPT_VARIABLES = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")
_ABSENT = "0" * 40
_LOCK_STALE_S = 5.0  # git holds the lock on a ref for milliseconds


class Repository:
    """The git repository whose top folder is `path`.

    Commits are 40 hex digits, refs are full names.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        if not (self.path / ".git").exists():
            raise WorkspaceError(
                f"{self.path} has no .git; make a workspace with `autoresearch init {self.path}`"
            )

    @classmethod
    def create(cls, path: Path) -> Repository:
        """Make `path` a repository of its own, on branch main, without commits.

        Parent repositories do not matter.
        """
        path.mkdir(parents=True, exist_ok=True)
        _git(["init", "--quiet", "--template=", str(path.absolute())])
        repository = cls(path)
        repository._run("symbolic-ref", "HEAD", "refs/heads/main")
        return repository

    def head(self) -> str:
        """The commit that is checked out."""
        commit = self.resolve("HEAD")
        if commit is None:
            raise WorkspaceError(
                f"{self.path} has no commit yet; run `git add -A && git commit -m start` there"
            )
        return commit

    def current_branch(self) -> str | None:
        """The branch that is checked out, without refs/heads/; None for a detached HEAD."""
        return self._checked_out_ref().removeprefix("refs/heads/") or None

    def resolve(self, ref: str) -> str | None:
        """The commit that a ref, branch, tag or abbreviation names; None when there is none."""
        arguments = ("rev-parse", "--quiet", "--verify", "--end-of-options", f"{ref}^{{commit}}")
        return self._text(*arguments, accept=(0, 1)) or None

    def require(self, commit: str) -> None:
        """Refuse where a commit that was here, and that a ref is to hold, is gone.

        Raises:
            TrustViolation: it is.
        """
        if self.resolve(commit) is None:
            raise TrustViolation(
                f"commit {commit[:12]} is not in {self.path}, and the ledger rests on it: part of "
                ".git is lost, or this is a shallow clone. Restore .git from a copy; "
                "`autoresearch verify` says what is missing"
            )

    def commits_since(self, old: str, new: str) -> list[str]:
        """The commits that `new` has and `old` has not, the latest first."""
        return self._text("rev-list", f"{old}..{new}").split()

    def dirty_files(self) -> list[str]:
        """Tracked files whose text in the checkout or the index is not the one of HEAD."""
        arguments = ("status", "--porcelain", "-z", "--untracked-files=no", "--no-renames")
        entries = self._run(*arguments).decode(errors="surrogateescape").split("\0")
        return [entry[3:] for entry in entries if entry]

    def fetch(self, source: Path, branch: str, ref: str) -> str:
        """Copy a branch of another repository on this machine to `ref`; the commit it is at.

        Raises:
            UserError: there is no such repository or branch, or it is another user's.
        """
        refspec = f"+refs/heads/{branch}:{ref}"
        try:
            self._run("fetch", "--quiet", "--no-tags", "--", str(source.absolute()), refspec)
        except GitError as error:
            said = (error.said.splitlines() or [str(error)])[0]
            remedy = f"see `git -C {source} branch`"
            if "dubious ownership" in said:  # and safe.directory is among the settings not read
                remedy = "it belongs to another user; copy it with `cp -r` and import from the copy"
            raise UserError(
                f"could not fetch branch {branch!r} from {source}: {said}; {remedy}"
            ) from error
        return self.resolve(ref) or ""

    def read(self, commit: str, path: str) -> str:
        """The text of one file in one commit.

        Raises:
            UserError: no such commit or file, or the file is not UTF-8.
        """
        try:
            return self._run("cat-file", "blob", f"{commit}:{path}").decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} of commit {commit[:12]} is not UTF-8: {error.reason} at byte {error.start}"
            ) from error
        except GitError as error:
            raise UserError(
                f"there is no {path} in commit {commit[:12]!r} of {self.path}; see `git log --all "
                f"-- {path}`"
            ) from error

    def commit_file(self, parent: str, path: str, text: str, message: str) -> str:
        """A new commit on top of `parent` where only `path` differs.

        No ref moves: the caller gives it one.
        """
        blob = self._text("hash-object", "-w", "--stdin", stdin=text.encode())
        with tempfile.TemporaryDirectory(prefix="autoresearch-index-") as folder:
            index = {"GIT_INDEX_FILE": os.path.join(folder, "index")}
            entry = f"100644,{blob},{path}"
            self._run("read-tree", parent, variables=index)
            self._run("update-index", "--add", "--cacheinfo", entry, variables=index)
            tree = self._text("write-tree", variables=index)
        return self._text("commit-tree", tree, "-p", parent, "-F", "-", stdin=message.encode())

    def export(self, commit: str, folder: Path) -> None:
        """Write the files of a commit into `folder`, which learns nothing of this repository."""
        with tempfile.TemporaryDirectory(prefix="autoresearch-index-") as place:
            index = {"GIT_INDEX_FILE": os.path.join(place, "index")}
            self._run("read-tree", commit, variables=index)
            self._run("checkout-index", "--all", f"--prefix={folder.absolute()}/", variables=index)

    def commit_files(self, paths: list[str], message: str) -> str:
        """Commit files of the checkout as the first commit of the current branch."""
        self._run("add", "--force", "--", *paths)
        tree = self._text("write-tree")
        commit = self._text("commit-tree", tree, "-F", "-", stdin=message.encode())
        self._run("update-ref", "HEAD", commit, _ABSENT)
        return commit

    def set_ref(self, ref: str, new: str, old: str | None) -> None:
        """Move `ref` to `new` if it is at `old` (None: if it does not exist yet), atomically.

        Raises:
            TrustViolation: the ref is somewhere else, so somebody or something moved it; or the
                commit is not here.
            WorkspaceError: the ref is the branch that is checked out, which is not ours to move.
        """
        if ref == self._checked_out_ref():
            raise WorkspaceError(
                f"{ref} is checked out in {self.path}, where a person may be editing it, so it "
                "cannot be moved; expected another branch there. Run `git switch main`"
            )
        try:
            self._update_ref(ref, new, old or _ABSENT)
        except GitError as error:
            self.require(new)
            seen = self.resolve(ref)
            if seen == old:
                raise  # not a mismatch: a full disk, a lock file, a name that git refuses
            raise TrustViolation(
                f"{ref} is at {seen or 'nothing'}, expected {old or 'nothing'}: something else "
                f"moved it. Look at `git -C {self.path} reflog {ref}`, then move it back with "
                "`git update-ref`"
            ) from error

    def _update_ref(self, ref: str, new: str, old: str) -> None:
        arguments = ("update-ref", "--no-deref", ref, new, old)
        try:
            self._run(*arguments)
        except GitError:
            if not self._outlive_lock(ref):
                raise
            self._run(*arguments)

    def _outlive_lock(self, ref: str) -> bool:
        """Wait for a lock on a ref, then remove one that a git killed in the middle has left.

        Whether there was one.
        """
        lock = self.path / ".git" / f"{ref}.lock"
        was_there = lock.exists()
        with contextlib.suppress(FileNotFoundError):
            while time.time() - lock.stat().st_mtime < _LOCK_STALE_S:
                time.sleep(0.05)
            lock.unlink()
        return was_there

    def refs(self, prefix: str) -> dict[str, str]:
        """Full names and commits of all refs under `prefix`, such as refs/autoresearch/main."""
        text = self._run("for-each-ref", "--format=%(objectname) %(refname)", prefix).decode()
        return {name: commit for commit, name in (line.split(" ", 1) for line in text.splitlines())}

    def fsck(self) -> list[str]:
        """What is wrong with the objects and refs, in git's words; empty where nothing is."""
        try:
            self._run("fsck", "--no-progress", "--no-dangling", "--no-reflogs")
        except GitError as error:
            return [str(error)]
        return []

    def diff(self, a: str, b: str, path: str) -> str:
        """The unified diff of one file between two commits; "" where it is the same."""
        plain = ("--no-ext-diff", "--no-textconv", "--no-color")
        return self._run("diff-tree", "-p", *plain, a, b, "--", path).decode(errors="replace")

    def _checked_out_ref(self) -> str:
        return self._text("symbolic-ref", "--quiet", "HEAD", accept=(0, 1))

    def _text(self, *arguments: str, **options: Any) -> str:
        return self._run(*arguments, **options).decode().strip()

    def _run(
        self,
        *arguments: str,
        stdin: bytes = b"",
        variables: dict[str, str] | None = None,
        accept: tuple[int, ...] = (0,),
    ) -> bytes:
        # Naming both folders ends git's search for a repository: a parent's is never taken.
        where = [f"--git-dir={self.path / '.git'}", f"--work-tree={self.path}"]
        return _git(
            [*where, *arguments], stdin=stdin, variables=variables, accept=accept, cwd=self.path
        )


class GitError(AutoresearchError):
    """A git command failed in a way that its caller did not expect; `said` is git's own text."""

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said


def _git(
    arguments: list[str],
    *,
    stdin: bytes = b"",
    variables: dict[str, str] | None = None,
    accept: tuple[int, ...] = (0,),
    cwd: Path | None = None,
) -> bytes:
    settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
    command = ["git", "--no-pager", "--no-optional-locks", *settings, *arguments]
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            env=_environment(variables or {}),
            cwd=cwd,
            check=False,
            start_new_session=True,  # a Ctrl-C meant for the session would end git in the middle
        )
    except FileNotFoundError as error:
        raise UserError("git is not on the PATH; install it and run the command again") from error
    if done.returncode not in accept:
        said = done.stderr.decode(errors="replace").strip()
        failed = f"`git {' '.join(arguments)}` failed with exit code {done.returncode}"
        raise GitError(f"{failed}: {said or 'it said nothing'}; see `autoresearch doctor`", said)
    return done.stdout if done.returncode == 0 else b""


def _environment(extra: dict[str, str]) -> dict[str, str]:
    name, address = _IDENTITY
    return {
        **{key: os.environ[key] for key in _KEPT_VARIABLES if key in os.environ},
        "LC_ALL": "C",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": name,
        "GIT_AUTHOR_EMAIL": address,
        "GIT_COMMITTER_NAME": name,
        "GIT_COMMITTER_EMAIL": address,
        **extra,
    }
