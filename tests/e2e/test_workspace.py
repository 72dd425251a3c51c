"""Making, opening and refusing workspaces in real repositories, of every preset."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from autoresearch.system.git import Repository
from autoresearch.values.constants import parse_constants
from autoresearch.values.errors import UserError, WorkspaceError
from autoresearch.workspace import (
    init,
    load_preset,
    load_presets,
    open_workspace,
)

PRESETS = ("demo", "laptop", "h100", "gpu-24gb", "gpu-12gb", "mps", "reference")


def test_init_makes_a_repository_with_everything_committed(tmp_path: Path) -> None:
    """A fresh workspace is clean and complete, and agents find their way from CLAUDE.md."""
    made = init(tmp_path / "space", "demo")
    tracked = subprocess.run(
        ["git", "-C", str(made.root), "ls-files"], check=True, capture_output=True, text=True
    ).stdout.split()
    assert tracked == [
        ".agents/skills/autoresearch/SKILL.md",
        ".gitignore",
        "AGENTS.md",
        "CLAUDE.md",
        "autoresearch.toml",
        "program.md",
        "train.py",
    ]
    assert made.repository.dirty_files() == []
    assert made.repository.current_branch() == "main"
    assert (made.root / "CLAUDE.md").read_text() == "@AGENTS.md\n"
    assert open_workspace(made.root) == made
    made.require_clean()


def test_init_writes_the_constants_and_values_of_the_preset(tmp_path: Path) -> None:
    """What the preset says is what the files hold; changes go on top."""
    made = init(
        tmp_path / "space", "demo", {"trial": {"budget_s": 5}, "session": {"tag": "night-1"}}
    )
    preset = load_preset("demo")
    constants = parse_constants(made.train_path.read_text())
    assert {name: constants[name].value for name in preset.constants} == dict(preset.constants)
    assert (made.config.preset, made.config.data.context) == ("demo", 128)
    assert made.config.trial.budget_s == 5.0


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_fits_its_train_py(tmp_path: Path, name: str) -> None:
    """Constants exist in train.py, values in autoresearch.toml, and each says what it is for."""
    made = init(tmp_path / "space", name)
    assert made.config.preset == name
    assert made.config.data.vocab_size <= 32768
    assert load_preset(name).about.strip()


def test_no_preset_is_left_out() -> None:
    """The list above is the list that ships."""
    assert sorted(load_presets()) == sorted(PRESETS)
    with pytest.raises(
        UserError, match=r"there is no preset 'h200', expected auto or one of .*demo"
    ):
        load_preset("h200")


def test_a_workspace_in_another_repository_is_its_own(tmp_path: Path) -> None:
    """The outer repository, its branch and its index are not touched."""
    outer = Repository.create(tmp_path / "outer")
    (outer.path / "train.py").write_text("theirs\n")
    start = outer.commit_files(["train.py"], "theirs")
    made = init(outer.path / "inner", "demo")
    assert outer.head() == start
    assert made.repository.head() != start
    assert made.repository.refs("refs/heads").keys() == {"refs/heads/main"}


def test_init_refuses_folders_that_are_taken(tmp_path: Path) -> None:
    """A workspace, a folder with files, a repository with commits, a file: each is refused."""
    init(tmp_path / "space", "demo")
    with pytest.raises(WorkspaceError, match="is a workspace already; go on there"):
        init(tmp_path / "space", "demo")
    with pytest.raises(WorkspaceError, match=r"is not empty \(it holds space\)"):
        init(tmp_path, "demo")
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="is a file, expected a new or an empty folder"):
        init(tmp_path / "file", "demo")
    with pytest.raises(UserError, match="could not make the folder"):
        init(tmp_path / "file" / "below", "demo")
    old = Repository.create(tmp_path / "old")
    (old.path / "x").write_text("")
    old.commit_files(["x"], "x")
    (old.path / "x").unlink()
    with pytest.raises(WorkspaceError, match="a git repository with commits"):
        init(tmp_path / "old", "demo")
    assert not (tmp_path / "old" / "train.py").exists()


def test_init_after_git_init(tmp_path: Path) -> None:
    """A repository without commits is as good as an empty folder."""
    Repository.create(tmp_path / "space")
    assert init(tmp_path / "space", "demo").repository.dirty_files() == []


def test_open_looks_upwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands work from any folder inside, and say how to make a workspace outside."""
    root = init(tmp_path / "space", "demo").root
    (root / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(root / "a" / "b")
    assert open_workspace().root == root
    with pytest.raises(
        WorkspaceError, match=r"there is no autoresearch.toml in .* `autoresearch init"
    ):
        open_workspace(tmp_path)


def test_open_names_the_file_with_the_mistake(tmp_path: Path) -> None:
    """A settings file that cannot be read is named with its path."""
    path = init(tmp_path / "space", "demo").root / "autoresearch.toml"
    path.write_text("[trial]\nbugdet_s = 3\n")
    with pytest.raises(UserError, match=rf"{path}: unknown key 'trial.bugdet_s'"):
        open_workspace(path.parent)
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match=rf"could not read {path}: .*git checkout"):
        open_workspace(path.parent)


def test_a_dirty_train_py_is_refused_with_the_command(tmp_path: Path) -> None:
    """Other files may be dirty: a session reads only commits of train.py."""
    made = init(tmp_path / "space", "demo")
    (made.root / "program.md").write_text("my own task\n")
    made.require_clean()
    made.train_path.write_text("DEPTH = 1\n")
    with pytest.raises(
        WorkspaceError, match=r"not committed.*git commit train.py -m.*git checkout"
    ):
        made.require_clean()


def test_paths_stay_inside_the_ignored_folder(tmp_path: Path) -> None:
    """Nothing that a session writes can be committed by accident."""
    made = init(tmp_path / "space", "demo")
    for path in (
        made.ledger_path,
        made.runs_folder / "1",
        made.cache_folder / "x",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    for name in ("results.tsv", "progress.png", "summary.md"):
        (made.root / name).write_text("x")
    command = ["git", "-C", str(made.root), "status", "--porcelain"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == ""
