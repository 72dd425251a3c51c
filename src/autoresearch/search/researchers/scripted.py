"""Edits from a list or a folder, in order: for tests, demonstrations and ideas written down before.

A folder holds numbered files: `010-wider.py` is a whole train.py (its first comment line describes
it), `020-rates.toml` changes constants of the champion:

    description = "faster head"
    is_simplification = false
    [constants]
    HEAD_LR = 0.01
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoresearch.search.history import History
from autoresearch.search.researchers import Exhausted
from autoresearch.search.researchers.space import describe
from autoresearch.values.constants import parse_constants, substitute
from autoresearch.values.errors import UserError
from autoresearch.values.records import Proposal

_KEYS = {"description", "is_simplification", "constants"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedEdit:
    """One edit: a whole source, or constants to change in the champion's."""

    description: str = ""
    source: str = ""
    constants: Mapping[str, Any] = field(default_factory=dict)
    is_simplification: bool = False


class ScriptedResearcher:
    """Proposes its edits one after the other; turns counted in the history say where it goes on."""

    name = "scripted"

    def __init__(self, script: Path | Sequence[ScriptedEdit]) -> None:
        self._edits = read_script(script) if isinstance(script, Path) else tuple(script)

    def propose(self, history: History, champion_commit: str, champion_source: str) -> Proposal:
        """The next edit of the script."""
        names = [turn.researcher for turn in history.trials]
        names += [turn.researcher for turn in history.refusals]
        num_done = names.count(self.name)
        if num_done >= len(self._edits):
            raise Exhausted(f"all {len(self._edits)} edits of the script are done")
        edit = self._edits[num_done]
        source, description = edit.source, edit.description
        if edit.constants:
            known = {name: c.value for name, c in parse_constants(champion_source).items()}
            source = substitute(champion_source, edit.constants)
            description = description or describe(known, edit.constants)
        return Proposal(
            source=source,
            description=description or f"edit {num_done + 1} of the script",
            parent=champion_commit,
            researcher=self.name,
            parameters=dict(edit.constants) or None,
            is_simplification=edit.is_simplification,
        )


def read_script(folder: Path) -> tuple[ScriptedEdit, ...]:
    """The edits in a folder, in the order of their names.

    Raises:
        UserError: there is no such folder, nothing in it, or a file that cannot be read.
    """
    paths = sorted(p for p in folder.glob("*") if p.suffix in (".py", ".toml"))
    if not paths:
        raise _no_script(str(folder))
    return tuple(_read_edit(path) for path in paths)


def find_script(script: str, folder: Path) -> Path:
    """The folder that the setting researcher.script names, from `folder` on.

    Raises:
        UserError: it names none.
    """
    if not script:
        raise _no_script(script)
    return folder / script


def _no_script(seen: str) -> UserError:
    return UserError(
        f"researcher.script is {seen!r}, expected a folder with numbered .py or .toml files; set "
        "it in autoresearch.toml"
    )


def _read_edit(path: Path) -> ScriptedEdit:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            first = text.split("\n", 1)[0]
            description = first.lstrip("# ").strip() if first.startswith("#") else path.stem
            return ScriptedEdit(source=text, description=description)
        body = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} cannot be read as an edit: {error}; mend or remove it") from error
    unknown = sorted(set(body) - _KEYS)
    if unknown or not isinstance(body.get("constants"), dict) or not body["constants"]:
        raise UserError(
            f"{path} has the keys {sorted(body)}, expected a table [constants] with at least one "
            "value, and description and is_simplification if wanted"
        )
    return ScriptedEdit(**body)
