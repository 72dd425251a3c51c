"""The rules of an arena: what all its sessions share, kept in arena.json of its folder.

Rules are checked before anything is written, so that a slip of the hand leaves neither a folder nor
a rule behind. A folder is an arena where it has an arena.json; another one must be new or empty.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoresearch import workspace as workspaces
from autoresearch.system.files import write_atomic, writing
from autoresearch.values.errors import UserError

RULES_NAME = "arena.json"
_LEAST = {"trials": 1, "hours": 0, "repeats": 1, "rounds": 1, "seed": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What all share. `tables` are further settings of every workspace's autoresearch.toml."""

    preset: str = "demo"
    researchers: tuple[str, ...] = ("random", "tpe", "cmaes")
    trials: int = 30
    hours: float = 0.0  # instead of trials, where it is over 0
    repeats: int = 5
    rounds: int = 4  # fresh pairs of each champion and the baseline
    seed: int = 0  # of the first repeat's researchers
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def open_rules(folder: Path, given: Mapping[str, Any]) -> Rules:
    """The arena's rules: those in its folder, with `given` on top; written there.

    Raises:
        UserError: a rule that cannot be, a damaged arena.json, or what was measured would not
            compare with what `given` asks for.
        WorkspaceError: the folder is no arena and holds other files.
    """
    path = folder / RULES_NAME
    before: dict[str, Any] = {}
    if path.is_file():
        before = _read(path)
    else:
        workspaces.refuse_taken(folder.absolute(), "arena")
    fixed = [n for n in ("preset", "seed", "tables") if n in given and n in before]
    changed = [name for name in fixed if given[name] != before[name]]
    if changed:
        raise UserError(
            f"the arena in {folder} has {changed[0]} = {before[changed[0]]!r}, not "
            f"{given[changed[0]]!r}: results would not compare; choose another folder"
        )
    problem = _problem(given)
    if problem:
        raise UserError(f"{problem}; see `autoresearch arena --help`")
    values = {**before, **given}
    rules = Rules(
        **{**values, "researchers": tuple(values.get("researchers", Rules().researchers))}
    )
    _require_settings(rules)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(dataclasses.asdict(rules), indent=1) + "\n")
    return rules


def _read(path: Path) -> dict[str, Any]:
    remedy = "restore it from a copy, or begin in a new folder: `autoresearch arena FOLDER`"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as an arena's rules: {error}; {remedy}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {str(values)[:60]!r}, expected an object; {remedy}")
    problem = _problem(values)
    if problem:
        raise UserError(f"{path}: {problem}; {remedy}")
    return values


def _problem(values: Mapping[str, Any]) -> str:
    """What is wrong with the rules' names, types or bounds; "" where nothing is."""
    usual = dataclasses.asdict(Rules())
    for name, value in values.items():
        if name not in usual:
            return f"there is no rule {name!r}, expected {', '.join(usual)}"
        if name in _LEAST:
            kinds = (int, float) if name == "hours" else (int,)
            is_number = isinstance(value, kinds) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value) or value < _LEAST[name]:
                return f"{name} is {value!r}, expected a number of at least {_LEAST[name]}"
        elif name == "preset" and not isinstance(value, str):
            return f"preset is {value!r}, expected a name"
        elif name == "researchers" and not (
            isinstance(value, list | tuple) and value and all(isinstance(k, str) for k in value)
        ):
            return f"researchers is {value!r}, expected a list of names"
        elif name == "tables" and (problem := problem_of_tables(value)):
            return problem
    return ""


def problem_of_tables(tables: Any) -> str:
    """What is no table of autoresearch.toml; "" where all are."""
    if not isinstance(tables, Mapping):
        return f"tables is {tables!r}, expected tables of {workspaces.CONFIG_NAME}"
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            return f"{name} is {table!r}, expected a table of {workspaces.CONFIG_NAME}: [{name}]"
    return ""


def _require_settings(rules: Rules) -> None:
    """Refuse what `init` would refuse when it makes the workspaces."""
    if len(set(rules.researchers)) != len(rules.researchers):
        raise UserError(
            f"researchers {', '.join(rules.researchers)}: name each of them once, for example "
            f"`autoresearch arena FOLDER -r {rules.researchers[0]}`"
        )
    for kind in rules.researchers:
        workspaces.plan(rules.preset, settings_of(rules, kind, 1))


def settings_of(rules: Rules, kind: str, repeat: int) -> dict[str, Mapping[str, Any]]:
    """The settings of one researcher's workspace, beside its preset."""
    own = {"kind": kind, "seed": rules.seed + repeat - 1}
    return {**rules.tables, "researcher": {**rules.tables.get("researcher", {}), **own}}
