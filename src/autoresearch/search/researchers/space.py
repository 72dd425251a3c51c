"""The searchable constants of a train.py as a space to draw from, and proposals from draws."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

from autoresearch.search.history import History
from autoresearch.search.researchers import Exhausted
from autoresearch.values.constants import Constant, fingerprint, parse_constants, substitute
from autoresearch.values.errors import UserError
from autoresearch.values.records import Proposal

_MAX_DRAWS = 100  # of programs that were tried before, until a space counts as used up
_STEP_FRAC = 0.25  # of the range (of its logarithm): deviation of a step from the champion
_DIGITS = 3  # significant digits of a drawn number: people read and write these sources


def searchable_constants(source: str) -> dict[str, Constant]:
    """The constants of `source` that have a range or choices.

    Raises:
        UserError: there are none.
    """
    found = {name: c for name, c in parse_constants(source).items() if c.is_searchable}
    if not found:
        raise UserError(
            "train.py has no constant to search, expected lines such as "
            "`MATRIX_LR = 0.04  # step size [0.005, 0.2] log`; add ranges or choose another "
            "researcher in autoresearch.toml"
        )
    return found


def draw(constant: Constant, rng: random.Random) -> Any:
    """One value, uniform over the range (over its logarithm where the range says so)."""
    if constant.choices:
        return rng.choice(constant.choices)
    return from_unit(constant, rng.random())


def step(constant: Constant, rng: random.Random) -> Any:
    """Another value than the constant has now: a Gaussian step in its range, or another choice."""
    if constant.choices:
        others = [choice for choice in constant.choices if choice != constant.value]
        return rng.choice(others)
    value = constant.clip(constant.value)
    for _ in range(_MAX_DRAWS):
        moved = from_unit(constant, to_unit(constant, value) + rng.gauss(0, _STEP_FRAC))
        if moved != constant.value:
            return moved
    return value


def tidy(constant: Constant, value: Any) -> Any:
    """A drawn number, rounded for reading and held inside its range."""
    if constant.choices:
        return value
    return constant.clip(value if constant.is_int else float(f"{value:.{_DIGITS}g}"))


def to_unit(constant: Constant, value: float) -> float:
    """Where a number lies in its range, from 0 to 1."""
    low, high = constant.bounds
    if low == high:
        return 0.0
    if constant.is_log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def from_unit(constant: Constant, unit: float) -> Any:
    """The number at a place in the range; places outside are brought to its ends."""
    low, high = constant.bounds
    held = min(max(unit, 0.0), 1.0)
    value = low * (high / low) ** held if constant.is_log else low + (high - low) * held
    return tidy(constant, value)


def propose_values(
    name: str,
    history: History,
    champion: tuple[str, str],
    draw_values: Callable[[], Mapping[str, Any]],
) -> Proposal:
    """A proposal out of the first draw that gives a program which was not tried before.

    Args:
        name: the researcher's.
        history: knows what was tried.
        champion: its commit and source.
        draw_values: gives the values of some searchable constants; the others stay.

    Raises:
        Exhausted: a hundred draws gave nothing new.
    """
    commit, source = champion
    constants = searchable_constants(source)
    current = {key: constant.value for key, constant in constants.items()}
    unchanged = fingerprint(source)
    for _ in range(_MAX_DRAWS):
        values = {**current, **draw_values()}
        changes = {key: value for key, value in values.items() if value != current[key]}
        edited = substitute(source, changes)
        tree = fingerprint(edited)
        if tree != unchanged and history.trial_like(tree) is None:
            return Proposal(
                source=edited,
                description=describe(current, changes),
                parent=commit,
                researcher=name,
                parameters=values,
            )
    raise Exhausted(f"{name} drew {_MAX_DRAWS} times and found no program that was not tried")


def describe(current: Mapping[str, Any], changes: Mapping[str, Any]) -> str:
    """`MATRIX_LR 0.02 -> 0.041, DEPTH 2 -> 3`."""
    return ", ".join(f"{key} {current[key]} -> {value}" for key, value in changes.items())
