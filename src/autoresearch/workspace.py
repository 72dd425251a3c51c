"""A workspace: the git repository in which research happens.

    train.py        the one file that is edited         autoresearch.toml  all settings
    program.md      the task, for people and agents     AGENTS.md          where agents start
    .autoresearch/  ledger, artifacts, caches           results.tsv ...    made by `report`

A workspace is a repository of its own, also inside another one. Sessions work on branches named
autoresearch/TAG; the branch that a person has checked out is theirs. A preset is a starting point:
constants for train.py and values for autoresearch.toml, written out in full so that nothing of it
stays hidden in the package.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from autoresearch.search.branch import Branch
from autoresearch.system import hardware
from autoresearch.system.files import write_atomic
from autoresearch.system.git import Repository
from autoresearch.values.config import Config, parse_config
from autoresearch.values.constants import substitute
from autoresearch.values.errors import UserError, WorkspaceError

CONFIG_NAME = "autoresearch.toml"
TRAIN_NAME = "train.py"
_STATE_FOLDER = ".autoresearch"
_IGNORED = (f"{_STATE_FOLDER}/", "results.tsv", "progress.png", "summary.md", "__pycache__/")
_HARMLESS_NAMES = {".git", ".DS_Store"}  # a .git without commits, that is
_HELP_COLUMN = 36

Changes: TypeAlias = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A starting point: `constants` of train.py, `config` as tables of autoresearch.toml."""

    name: str
    about: str
    constants: Mapping[str, Any]
    config: Changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """An opened workspace: where things are, and its settings as they were when it was opened."""

    root: Path
    config: Config

    @property
    def repository(self) -> Repository:
        """The git repository at the root."""
        return Repository(self.root)

    @property
    def train_path(self) -> Path:
        """The person's own copy of train.py; sessions read commits, never this."""
        return self.root / TRAIN_NAME

    @property
    def state_folder(self) -> Path:
        """All that sessions write: never in git."""
        return self.root / _STATE_FOLDER

    @property
    def ledger_path(self) -> Path:
        """The durable record of all sessions."""
        return self.state_folder / "ledger.sqlite"

    @property
    def runs_folder(self) -> Path:
        """A folder of artifacts for every run."""
        return self.state_folder / "runs"

    @property
    def cache_folder(self) -> Path:
        """Compile caches, by commit."""
        return self.state_folder / "cache"

    def read_train(self) -> str:
        """train.py as it is on the disk.

        Raises:
            UserError: it is not there, or no text.
        """
        return _read_text(self.train_path)

    def write_train(self, source: str) -> None:
        """Put another train.py on the disk."""
        write_atomic(self.train_path, source)

    def replace_train(self, expected: str, source: str) -> bool:
        """Put another train.py in the place of `expected`; False where somebody changed it since,
        and it is left alone.
        """
        with contextlib.suppress(UserError):
            if self.read_train() == expected:
                self.write_train(source)
                return True
        return False

    def require_start(self, branch: Branch) -> None:
        """Refuse where a session would pass over what somebody did to train.py.

        Raises:
            WorkspaceError: no commit holds it, or the branch has begun without it.
        """
        champion = branch.champion()
        if champion is None:
            self.require_clean()
        elif not branch.has_held(self.read_train()):
            commit = f"`git commit {TRAIN_NAME} -m 'my start'` and "
            is_dirty = TRAIN_NAME in self.repository.dirty_files()
            raise WorkspaceError(
                f"{self.train_path} is neither the baseline of {branch.name} nor any of its "
                f"champions, and a session goes on from the champion, {champion[:12]}, so your "
                "changes would not be run. Try them: `autoresearch train -m 'what I tried'`; "
                f"or begin a branch with them: {commit if is_dirty else ''}`autoresearch run --tag "
                "NEW`; or drop them: "
                f"`git show {champion[:12]}:{TRAIN_NAME} > {TRAIN_NAME}`"
            )

    def require_clean(self) -> None:
        """Refuse to begin a branch from a train.py that no commit holds.

        Raises:
            WorkspaceError: train.py has changes that are not committed.
        """
        if TRAIN_NAME in self.repository.dirty_files():
            raise WorkspaceError(
                f"{self.train_path} has changes that are not committed, and a session starts from "
                f"a commit; commit them with `git commit {TRAIN_NAME} -m 'my start'`, or drop them "
                f"with `git checkout {TRAIN_NAME}`"
            )


def open_workspace(start: Path | None = None) -> Workspace:
    """The workspace that `start` (the current folder) is in, looking upwards.

    Raises:
        WorkspaceError: there is none.
        UserError: its autoresearch.toml has mistakes.
    """
    start = (start or Path.cwd()).absolute()
    for folder in (start, *start.parents):
        path = folder / CONFIG_NAME
        if path.is_file():
            return Workspace(root=folder, config=parse_config(_read_text(path), str(path)))
    raise WorkspaceError(
        f"there is no {CONFIG_NAME} in {start} or above it, so this is not a workspace; "
        "make one with `autoresearch init my-research`, then `cd my-research`"
    )


def init(path: Path, preset: str = "auto", changes: Changes | None = None) -> Workspace:
    """Make a workspace at `path`, a new or an empty folder, with everything committed.

    `changes` are values of autoresearch.toml by table, which replace those of the preset:
    {"trial": {"budget_s": 5.0}}.

    Raises:
        UserError: no such preset, or a value that autoresearch.toml would refuse.
        WorkspaceError: the folder is a workspace already, or holds other files.
    """
    path = path.absolute()
    refuse_taken(path)
    chosen, config = plan(preset, changes or {})
    texts = {
        TRAIN_NAME: substitute(_template(TRAIN_NAME), dict(chosen.constants)),
        "program.md": _template("program.md"),
        CONFIG_NAME: render_config(config, about=chosen.about),
        "AGENTS.md": _template("AGENTS.md"),
        "CLAUDE.md": "@AGENTS.md\n",
        ".agents/skills/autoresearch/SKILL.md": _template("SKILL.md"),
        ".gitignore": "".join(f"{name}\n" for name in _IGNORED),
    }
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"could not make the folder {path}: {error.strerror}; choose another one: "
            "`autoresearch init FOLDER`"
        ) from error
    for name, text in texts.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path / name, text)
    repository = Repository(path) if (path / ".git").exists() else Repository.create(path)
    repository.commit_files(sorted(texts), f"Start from preset {chosen.name}\n")
    return Workspace(root=path, config=config)


def plan(preset: str, changes: Changes) -> tuple[Preset, Config]:
    """The preset that `init` would start from, and the settings that it would write.

    Raises:
        UserError: no such preset, or a value that autoresearch.toml would refuse.
    """
    chosen = load_preset(choose_preset() if preset == "auto" else preset)
    return chosen, _configure(chosen, changes)


def load_presets() -> dict[str, Preset]:
    """All presets that the package ships, by name, in the order of templates/presets.toml."""
    tables = tomllib.loads(_template("presets.toml"))
    return {
        name: Preset(
            name=name,
            about=table.get("about", ""),
            constants=table.get("constants", {}),
            config=table.get("config", {}),
        )
        for name, table in tables.items()
    }


def load_preset(name: str) -> Preset:
    """One preset.

    Raises:
        UserError: there is none of that name; the message lists them all.
    """
    presets = load_presets()
    if name not in presets:
        raise UserError(
            f"there is no preset {name!r}, expected auto or one of {', '.join(presets)}; "
            "run `autoresearch init --help`"
        )
    return presets[name]


def choose_preset() -> str:
    """The preset that fits this machine: by memory of its GPU, or by cores where there is none."""
    device = hardware.pick_device("auto")
    if device == "mps":
        return "mps"
    if device == "cpu":
        return "laptop" if hardware.num_usable_cores() >= 8 else "demo"
    gpu = hardware.gpu_of(device)
    memory_mb = gpu.memory_mb if gpu is not None else 0.0
    if memory_mb > 70_000:
        return "h100"
    return "gpu-24gb" if memory_mb > 20_000 else "gpu-12gb"


def render_config(config: Config, about: str = "") -> str:
    """autoresearch.toml with every setting written out; `parse_config` reads it back equal."""
    lines = _template(CONFIG_NAME).rstrip("\n").split("\n")
    lines += [f"# The preset {config.preset!r}: {about}"] if about else []
    lines += ["", *_render_settings(config)]
    for field in dataclasses.fields(config):
        table = getattr(config, field.name)
        if dataclasses.is_dataclass(table):
            summary = (type(table).__doc__ or "").strip().splitlines()[0]
            lines += ["", f"# {summary}", f"[{field.name}]", *_render_settings(table)]
    return "\n".join(lines) + "\n"


def _render_settings(table: Any) -> list[str]:
    """The lines of one table, without those of the tables inside it."""
    settings = [(field, getattr(table, field.name)) for field in dataclasses.fields(table)]
    return [_render_setting(*each) for each in settings if not dataclasses.is_dataclass(each[1])]


def _render_setting(field: dataclasses.Field[Any], value: Any) -> str:
    assignment = f"{field.name} = {to_toml(value)}"
    choices = field.metadata["choices"]
    meaning = field.metadata["help"] + (f" ({', '.join(map(str, choices))})" if choices else "")
    return f"{assignment:<{_HELP_COLUMN}}  # {meaning}"


def to_toml(value: Any) -> str:
    """A setting's value as autoresearch.toml has it."""
    if isinstance(value, str):
        # A basic TOML string has JSON's escapes, except that DEL needs one and surrogates are none.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 100_000 else str(value)
    return repr(value)


def _configure(preset: Preset, changes: Changes) -> Config:
    """Defaults, then the preset, then `changes`, checked as a file would be."""
    lines = [f"preset = {to_toml(preset.name)}"]
    for table in dict.fromkeys([*preset.config, *changes]):
        lines.append(f"[{table}]")
        values = {**preset.config.get(table, {}), **changes.get(table, {})}
        lines += [f"{key} = {to_toml(value)}" for key, value in values.items()]
    return parse_config("\n".join(lines), f"preset {preset.name!r} with your changes")


def refuse_taken(path: Path, command: str = "init") -> None:
    """Refuse a folder that `command` must not fill: it takes a new or an empty one.

    Raises:
        WorkspaceError: the folder is a workspace already, or holds other files.
    """
    if (path / CONFIG_NAME).exists():
        raise WorkspaceError(
            f"{path} is a workspace already; go on there with `autoresearch run`, or choose "
            "another folder"
        )
    if path.exists() and not path.is_dir():
        raise WorkspaceError(
            f"{path} is a file, expected a new or an empty folder; choose another name"
        )
    if path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        foreign = sorted(names - _HARMLESS_NAMES)
        if ".git" in names and Repository(path).resolve("HEAD") is not None:
            foreign.append("a git repository with commits")
        if foreign:
            seen = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
            raise WorkspaceError(
                f"{path} is not empty (it holds {seen}), and `{command}` wants a folder of its "
                f"own; choose a new one: `autoresearch {command} {path / 'research'}`"
            )


def _template(name: str) -> str:
    folder = importlib.resources.files("autoresearch") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"could not read {path}: {error}; mend or restore it: `git checkout {path.name}`"
        ) from error
