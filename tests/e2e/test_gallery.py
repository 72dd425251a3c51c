"""Every cheat of the gallery gets what it deserves, and no honest candidate is harmed.

`make test` takes every third of those without torch, `make test-all` (GALLERY=all) all of them
once, runs/gallery.sh all of them many times.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from gallery import Case, Gallery, Result, cases

from autoresearch.system.sandbox import probe_levels

HAS_WALLS = any(works for level, works, _ in probe_levels() if level != "none")
ALL = os.environ.get("GALLERY") == "all"


def chosen(kind: str) -> list[Case]:
    """All of a kind, or the few that there is time for."""
    found = cases(kind)
    quick = [case for case in found if not case.says("IS_TORCH", False)]
    few = [*quick[::3], *[case for case in found if case not in quick][:1]]
    return found if ALL else few


CHEATS, HONEST_ONES = chosen("cheats"), chosen("honest")


@pytest.fixture(scope="module")
def galleries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, Gallery]]:
    """One with the stub's harness and one with the product's."""
    made = {}
    for is_stub in (True, False):
        folder = tmp_path_factory.mktemp("stub" if is_stub else "torch")
        made[is_stub] = Gallery(folder, is_stub=is_stub, budget_s=10.0 if is_stub else 60.0)
    yield made
    for gallery in made.values():
        gallery.close()


def run(galleries: dict[bool, Gallery], case: Case) -> Result:
    """One trial, in the stub's harness where it needs no torch."""
    if case.says("NEEDS_WALLS", False) and not HAS_WALLS:
        pytest.skip("needs a sandbox with walls")
    return galleries[not case.says("IS_TORCH", False)].run(case)


@pytest.mark.parametrize("case", CHEATS, ids=[case.path.stem for case in CHEATS])
def test_cheats_get_what_they_deserve(galleries: dict[bool, Gallery], case: Case) -> None:
    """The verdict that its file names, evidence in one line, nothing leaked, nothing changed."""
    result = run(galleries, case)
    assert result.is_right, result


@pytest.mark.parametrize("case", HONEST_ONES, ids=[case.path.stem for case in HONEST_ONES])
def test_honest_candidates_are_not_harmed(galleries: dict[bool, Gallery], case: Case) -> None:
    """A score, and an audit that finds nothing."""
    result = run(galleries, case)
    assert result.is_right, result
