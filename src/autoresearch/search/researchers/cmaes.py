"""CMA-ES over the searchable constants: all of them move together, in a learned direction.

The strategy is the `cmaes` package's, which is also behind Optuna's CmaEsSampler. It is asked and
told directly, because its state has to be rebuilt from the ledger for every proposal: the trials so
far are told in groups of one population, in their order, whoever proposed them; the rest of them
wait for their group to fill. A choice is a number too, its place in the list.

With n constants a population is 4 + 3 ln n trials, 14 for the thirty of our train.py: a search of
fewer than some fifty trials hardly gets beyond steps around the start.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from autoresearch.search.history import History
from autoresearch.search.researchers.space import (
    from_unit,
    propose_values,
    searchable_constants,
    to_unit,
)
from autoresearch.search.researchers.tpe import Point, known_points
from autoresearch.values.constants import Constant
from autoresearch.values.errors import UserError
from autoresearch.values.records import Proposal

_FIRST_SIGMA = 1 / 6  # of the range, as Optuna begins


class CmaesResearcher:
    """Draws from the strategy's distribution; the same seed and history give the same proposal."""

    name = "cmaes"

    def __init__(self, *, seed: int = 0) -> None:
        self._seed = seed

    def propose(self, history: History, champion_commit: str, champion_source: str) -> Proposal:
        """All constants moved, around where the best trials so far were.

        Raises:
            UserError: fewer than two constants to search, or the package `cmaes` is missing.
        """
        constants = searchable_constants(champion_source)
        if len(constants) < 2:
            raise UserError(
                f"the researcher 'cmaes' needs two searchable constants, train.py has only "
                f"{', '.join(constants)}; choose another researcher in autoresearch.toml"
            )
        points = known_points(history)
        rng = random.Random(f"{self._seed}/{history.num_proposals}")  # noqa: S311 - no secret
        strategy = _rebuild(constants, points, rng.getrandbits(31))

        def draw_values() -> dict[str, Any]:
            drawn = strategy.ask()
            return {
                name: _value(constant, float(unit))
                for (name, constant), unit in zip(constants.items(), drawn, strict=True)
            }

        return propose_values(self.name, history, (champion_commit, champion_source), draw_values)


def _rebuild(constants: Mapping[str, Constant], points: list[Point], seed: int) -> Any:
    """The strategy after all whole populations among `points`; the first point is its start."""
    import numpy as np

    try:
        from cmaes import CMA
    except ImportError as error:
        raise UserError(
            "the researcher 'cmaes' needs the package cmaes; run `pip install cmaes`, or choose "
            "another researcher in autoresearch.toml"
        ) from error
    start, *rest = [(_place(constants, values), score) for values, score in points] or [
        (_place(constants, {}), 0.0)
    ]
    bounds = np.array([[0.0, 1.0]] * len(constants))
    strategy = CMA(mean=np.array(start[0]), sigma=_FIRST_SIGMA, bounds=bounds, seed=seed)
    size = strategy.population_size
    for first in range(0, len(rest) - size + 1, size):
        strategy.tell([(np.array(at), score) for at, score in rest[first : first + size]])
    return strategy


def _place(constants: Mapping[str, Constant], values: Mapping[str, Any]) -> list[float]:
    """Where a point lies in the unit cube; a constant that it does not know has its value."""
    return [_unit(c, values.get(name, c.value)) for name, c in constants.items()]


def _unit(constant: Constant, value: Any) -> float:
    """A number's place in its range; the middle of a choice's share."""
    if constant.choices:
        known = value if value in constant.choices else constant.value
        place = constant.choices.index(known) if known in constant.choices else 0
        return (place + 0.5) / len(constant.choices)
    is_number = type(value) in (int, float)
    return to_unit(constant, constant.clip(value if is_number else constant.value))


def _value(constant: Constant, unit: float) -> Any:
    if constant.choices:
        held = min(max(unit, 0.0), 1.0)
        return constant.choices[min(int(held * len(constant.choices)), len(constant.choices) - 1)]
    return from_unit(constant, unit)
