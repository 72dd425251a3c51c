"""The git layer: what it writes, and what of a person's repository and set-up it leaves alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autoresearch.system import git as git_module
from autoresearch.system.git import Repository
from autoresearch.values.errors import TrustViolation, UserError, WorkspaceError

BRANCH = "refs/heads/autoresearch/main"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository with train.py and notes.md in its first commit."""
    made = Repository.create(tmp_path / "space")
    (made.path / "train.py").write_text("DEPTH = 2\n")
    (made.path / "notes.md").write_text("mine\n")
    made.commit_files(["train.py", "notes.md"], "start")
    return made


def _git(repository: Repository, *arguments: str) -> str:
    command = ["git", "-C", str(repository.path), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_first_commit(repository: Repository) -> None:
    """A new workspace is clean, on main, with one commit by our own author."""
    assert repository.current_branch() == "main"
    assert repository.dirty_files() == []
    assert _git(repository, "log", "--format=%an %s") == "autoresearch start\n"
    assert _git(repository, "rev-parse", "main").strip() == repository.head()


def test_commit_file_changes_one_file_and_nothing_of_the_person(repository: Repository) -> None:
    """Only the new commit differs: checkout, index and branch stay, other files come along."""
    before = repository.head()
    (repository.path / "notes.md").write_text("being edited\n")
    _git(repository, "add", "notes.md")
    (repository.path / "train.py").write_text("DEPTH = 99\n")
    new = repository.commit_file(before, "train.py", "DEPTH = 3\r\n", "deeper")
    assert repository.read(new, "train.py") == "DEPTH = 3\r\n"
    assert repository.read(new, "notes.md") == "mine\n"
    assert repository.head() == before
    assert sorted(repository.dirty_files()) == ["notes.md", "train.py"]
    assert _git(repository, "diff", "--cached", "--name-only") == "notes.md\n"
    assert (repository.path / "train.py").read_text() == "DEPTH = 99\n"


def test_a_commit_that_is_not_here_is_told(repository: Repository) -> None:
    """A shallow clone has the ledger's refs to make and not the commits: in words, not git's."""
    lost = "ead4a73fd47be44ff6abc2dcd2ab26190e32c047"
    with pytest.raises(TrustViolation, match=r"commit ead4a73fd47b is not in .*from a copy"):
        repository.set_ref(BRANCH, lost, None)
    assert repository.resolve(BRANCH) is None


def test_commit_file_can_add_in_folders(repository: Repository) -> None:
    """A path that is not there yet is added."""
    new = repository.commit_file(repository.head(), "ops/new file.py", "x = 1\n", "add")
    assert repository.read(new, "ops/new file.py") == "x = 1\n"


def test_set_ref_is_compare_and_swap(repository: Repository) -> None:
    """A ref moves only from where it is believed to be."""
    start = repository.head()
    new = repository.commit_file(start, "train.py", "DEPTH = 3\n", "deeper")
    repository.set_ref(BRANCH, start, None)
    repository.set_ref(BRANCH, new, start)
    assert repository.resolve(BRANCH) == new
    with pytest.raises(TrustViolation, match=rf"{BRANCH} is at {new}, expected {start}"):
        repository.set_ref(BRANCH, start, start)
    with pytest.raises(TrustViolation, match="expected nothing"):
        repository.set_ref(BRANCH, start, None)
    with pytest.raises(TrustViolation, match="is at nothing, expected"):
        repository.set_ref("refs/autoresearch/main/trials/0001", start, new)
    assert repository.resolve(BRANCH) == new


def test_a_lock_that_a_killed_git_left_is_outlived(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old ones are removed, young ones waited for; a wrong expectation stays an error."""
    start = repository.head()
    repository.set_ref(BRANCH, start, None)
    new = repository.commit_file(start, "train.py", "DEPTH = 3\n", "deeper")
    lock = repository.path / ".git" / f"{BRANCH}.lock"
    lock.touch()
    os.utime(lock, (1, 1))
    repository.set_ref(BRANCH, new, start)
    assert repository.resolve(BRANCH) == new
    lock.touch()
    monkeypatch.setattr(git_module.time, "sleep", lambda _: os.utime(lock, (1, 1)))
    with pytest.raises(TrustViolation, match="expected"):
        repository.set_ref(BRANCH, start, start)
    assert not lock.exists()


def test_the_checked_out_branch_is_not_moved(repository: Repository) -> None:
    """A person who looks at the research branch does not find the floor moved."""
    start = repository.head()
    repository.set_ref(BRANCH, start, None)
    _git(repository, "checkout", "--quiet", "autoresearch/main")
    new = repository.commit_file(start, "train.py", "DEPTH = 3\n", "deeper")
    with pytest.raises(WorkspaceError, match="git switch main"):
        repository.set_ref(BRANCH, new, start)


def test_refs_and_diff_and_log(repository: Repository) -> None:
    """What `show`, `diff` and `verify` read."""
    start = repository.head()
    new = repository.commit_file(
        start, "train.py", "DEPTH = 3\n", "deeper | by one\n\nWhy: a guess.\n"
    )
    repository.set_ref("refs/autoresearch/main/trials/0001", new, None)
    repository.set_ref("refs/autoresearch/other/trials/0001", start, None)
    assert repository.refs("refs/autoresearch/main") == {"refs/autoresearch/main/trials/0001": new}
    assert "-DEPTH = 2\n+DEPTH = 3\n" in repository.diff(start, new, "train.py")
    assert repository.diff(start, new, "notes.md") == ""
    log = _git(repository, "log", "--format=%H %s", new)
    assert log == f"{new} deeper | by one\n{start} start\n"


@pytest.mark.parametrize("name", ["nothing", "", "a..b", "--all", "refs/heads/none", "0" * 40])
def test_resolve_of_what_is_not_there(repository: Repository, name: str) -> None:
    """Odd names are no commit, and no option either."""
    assert repository.resolve(name) is None


def test_messages_for_what_is_missing(repository: Repository, tmp_path: Path) -> None:
    """No repository, no commit, no file, no UTF-8: each says so."""
    with pytest.raises(WorkspaceError, match=r"has no \.git; make a workspace"):
        Repository(tmp_path)
    with pytest.raises(WorkspaceError, match="has no commit yet"):
        Repository.create(tmp_path / "empty").head()
    with pytest.raises(UserError, match=r"there is no model.py in commit"):
        repository.read(repository.head(), "model.py")
    (repository.path / "train.py").write_bytes(b"\xff\xfe")
    _git(repository, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qam", "latin")
    with pytest.raises(UserError, match=r"train.py of commit \w+ is not UTF-8: .* byte 0"):
        repository.read(repository.head(), "train.py")


def test_without_git(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without git is told so, not shown a traceback."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="git is not on the PATH"):
        repository.head()


def test_the_set_up_of_the_machine_does_not_leak_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hooks, signing, templates, foreign GIT_DIR and odd global settings change nothing."""
    settings = tmp_path / "gitconfig"
    template = tmp_path / "template"
    (template / "hooks").mkdir(parents=True)
    hook = template / "hooks" / "reference-transaction"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    settings.write_text(
        f"[init]\ntemplateDir = {template}\ndefaultBranch = odd\n[commit]\ngpgSign = true\n"
        f"[core]\nhooksPath = {template}/hooks\nautocrlf = true\n[color]\nui = always\n"
    )
    outer = Repository.create(tmp_path / "outer")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    monkeypatch.setenv("GIT_DIR", str(outer.path / ".git"))
    inner = Repository.create(outer.path / "inner")
    (inner.path / "train.py").write_bytes(b"a = 1\r\n")
    start = inner.commit_files(["train.py"], "start")
    assert inner.current_branch() == "main"
    assert inner.read(start, "train.py") == "a = 1\r\n"
    new = inner.commit_file(start, "train.py", "a = 2\n", "two")
    inner.set_ref(BRANCH, new, None)
    assert "\x1b[" not in inner.diff(start, new, "train.py")
    assert outer.resolve("HEAD") is None


def test_export_gives_files_and_nothing_else(repository: Repository, tmp_path: Path) -> None:
    """No repository goes with them, and the person's checkout does not matter."""
    commit = repository.head()
    (repository.path / "train.py").write_text("being edited\n")
    folder = tmp_path / "out"
    folder.mkdir()
    repository.export(commit, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["notes.md", "train.py"]
    assert (folder / "train.py").read_text() == repository.read(commit, "train.py")


def test_ctrl_c_at_the_terminal_does_not_reach_git(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes to all processes of the session that the terminal belongs to, and git is in none."""
    folder = tmp_path / "bin"
    folder.mkdir()
    wrapper, seen = folder / "git", tmp_path / "seen"
    wrapper.write_text(
        f"#!{sys.executable}\nimport os, sys\nopen({str(seen)!r}, 'w').write(str(os.getsid(0)))\n"
        f"os.execv({shutil.which('git')!r}, sys.argv)\n"
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    assert len(repository.head()) == 40
    assert int(seen.read_text()) != os.getsid(0)
