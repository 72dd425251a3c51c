"""The searchable constants of a train.py as a space to draw from, and proposals made of such draws."""

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


def to_unit(constant: Constant, value: float) -> float:
    """Where a number lies in its range, from 0 to 1; outside of it, beyond."""
    low, high = _bounds(constant)
    if constant.is_log:
        return math.log(max(value, 1e-300) / low) / math.log(high / low)
    return (value - low) / (high - low)


def from_unit(constant: Constant, unit: float) -> Any:
    """The number at a place in the range, rounded for reading and held inside."""
    low, high = _bounds(constant)
    value = low * (high / low) ** unit if constant.is_log else low + (high - low) * unit
    value = min(max(value, low), high)
    if constant.is_int:
        return min(max(round(value), math.ceil(low)), math.floor(high))
    return min(max(float(f"{value:.{_DIGITS}g}"), low), high)


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


def _bounds(constant: Constant) -> tuple[float, float]:
    if constant.low is None or constant.high is None:
        raise TypeError(f"{constant.name} has no range")
    return constant.low, constant.high
