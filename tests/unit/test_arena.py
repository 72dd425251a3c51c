"""The arena's order of play, its figures and its pages, without a session."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoresearch import arena
from autoresearch.arena_rules import open_rules
from autoresearch.search.history import Event, History
from autoresearch.values.errors import UserError
from autoresearch.values.records import Decision, Trial, Verdict
from autoresearch.views.arena import Entry, arena_json, arena_markdown, estimate, tabulate
from autoresearch.views.arena_plot import arena_png

RULES = {"preset": "demo", "trials": 4, "hours": 0.0, "repeats": 2, "rounds": 2}
D, K, C = Verdict.DISCARD, Verdict.KEEP, Verdict.CRASH


def make_entry(researcher: str, repeat: int, gains: list[float], verdicts: list[Verdict]) -> Entry:
    """A repeat whose trials had these verdicts; its fresh gain is 0.01 less than the judged."""
    trials = tuple(
        Trial(
            trial_id=number, commit=f"c{number}", parent="base", description="",
            researcher=researcher, parameters=None, is_simplification=False, at=0.0,
            decision=Decision(verdict=verdict, reason="", gain_bpb=gain),
        )
        for number, (gain, verdict) in enumerate(zip(gains, verdicts, strict=True), start=1)
    )  # fmt: skip
    kept = [trial.commit for trial in trials if trial.decision and trial.decision.verdict is K]
    history = History(baseline="base", champion=kept[-1] if kept else "base", trials=trials)
    gain = sum(g for g, v in zip(gains, verdicts, strict=True) if v is K)
    return Entry(
        researcher=researcher,
        repeat=repeat,
        history=history,
        hours=0.5,
        closes=tuple(0.1 * n for n in range(1, len(trials) + 1)),
        pairs=((2.0, 2.01 - gain), (2.02, 2.03 - gain)) if kept else (),
        cost_usd=0.25,
    )


ENTRIES = [
    make_entry("random", 1, [-0.1, 0.05, 0.0, -0.2], [D, K, C, D]),
    make_entry("random", 2, [-0.1, -0.1, -0.1, -0.1], [D, D, D, D]),
    make_entry("tpe", 1, [0.1, 0.05, -0.1, 0.02], [K, K, D, K]),
    make_entry("tpe", 2, [0.1, 0.05, -0.1, -0.1], [K, D, D, D]),
    Entry(researcher="cmaes", repeat=1),
]


def test_gains_add_up_at_keeps_and_fresh_ones_are_means_of_pairs() -> None:
    """A champion that is the baseline gained nothing; one that never ran is unknown."""
    assert ENTRIES[2].curve(by_hours=False) == [
        (0.0, 0.0),
        (1.0, 0.1),
        (2.0, pytest.approx(0.15)),
        (3.0, pytest.approx(0.15)),
        (4.0, pytest.approx(0.17)),
    ]
    assert ENTRIES[0].curve(by_hours=True)[2] == (pytest.approx(0.2), 0.05)
    assert [e.fresh_gain for e in ENTRIES] == [
        pytest.approx(0.04), 0.0, pytest.approx(0.16), pytest.approx(0.09), None
    ]  # fmt: skip


def test_the_table_sums_counts_and_gives_student_intervals() -> None:
    """The larger fresh gain first; intervals of two repeats are wide, of one there is none."""
    tpe, random, cmaes = tabulate(ENTRIES)
    assert (tpe.researcher, tpe.trials, tpe.kept, tpe.no_score, tpe.cost_usd) == (
        *("tpe", 8, 4, 0),
        0.5,
    )
    assert (random.kept, random.no_score, cmaes.repeats, cmaes.fresh_gain) == (1, 1, 0, None)
    assert tpe.fresh_gain is not None
    half = 12.706 * 0.07 / math.sqrt(2) / math.sqrt(2)
    assert tpe.fresh_gain.mean == pytest.approx(0.125)
    assert tpe.fresh_gain.high == pytest.approx(0.125 + half, abs=1e-3)
    assert str(estimate([0.5])) == "+0.5000 (1 repeat)"
    assert estimate([]) is None


def test_pages_say_what_they_do_not_show() -> None:
    """The table in Markdown, the numbers as JSON, a picture by trials and by hours."""
    text = arena_markdown(ENTRIES, RULES, "Complete.")
    assert "| tpe | 2 | 8 | 4 | 0 | 0 | 1.00 | $0.50 |" in text
    assert "Intervals that overlap tell no order" in text
    numbers = arena_json(ENTRIES, RULES, {"cmaes-01": "broke"}, False)
    assert numbers["problems"] == {"cmaes-01": "broke"}
    assert len(numbers["entries"]) == 5
    for by_hours in (False, True):
        assert arena_png(ENTRIES, by_hours=by_hours).startswith(b"\x89PNG")


def test_blocks_alternate_on_few_cores_and_pairs_come_last() -> None:
    """Every second round the other way about; all at once where there is a core for each."""
    tasks = arena._plan(["a-01", "b-01"], jobs=1)
    assert [task.name for task in tasks[:4]] == ["a-01", "b-01", "b-01", "a-01"]
    assert [task.share for task in tasks[:8]] == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0]
    assert [task.is_pairs for task in tasks[8:]] == [True, True]
    assert len(arena._plan(["a-01", "b-01"], jobs=2)) == 4


def test_rules_stay_what_results_rest_on(tmp_path: Path) -> None:
    """More trials are fine; another preset or budget is refused."""
    rules = open_rules(tmp_path, {"researchers": ["tpe"], "tables": {"trial": {"budget_s": 1}}})
    assert rules.trials == 30
    again = open_rules(tmp_path, {"trials": 40})
    assert (again.researchers, again.trials, again.tables) == (
        ("tpe",),
        40,
        {"trial": {"budget_s": 1}},
    )
    with pytest.raises(UserError, match="preset = 'demo', not 'laptop'"):
        open_rules(tmp_path, {"preset": "laptop"})
    with pytest.raises(UserError, match="once"):
        open_rules(tmp_path, {"researchers": ["tpe", "tpe"]})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"researchers": ["nope"]}, "researcher.kind is 'nope', expected one of"),
        ({"researchers": []}, "researchers is [], expected a list of names"),
        ({"preset": "nope"}, "there is no preset 'nope'"),
        ({"tables": {"a": 1}}, "a is 1, expected a table of autoresearch.toml"),
        ({"tables": {"nope": {"a": 1}}}, "unknown key 'nope'"),
        ({"hours": math.nan}, "hours is nan, expected a number of at least 0"),
    ],
)
def test_rules_that_cannot_be_are_not_written(
    tmp_path: Path, given: dict[str, Any], words: str
) -> None:
    """Refused in words; neither a new folder nor the rules that were there learn of it."""
    with pytest.raises(UserError, match=re.escape(words)):
        open_rules(tmp_path / "new", given)
    assert not (tmp_path / "new").exists()
    open_rules(tmp_path / "old", {"trials": 3})
    before = (tmp_path / "old/arena.json").read_text()
    given = {name: value for name, value in given.items() if name in ("researchers", "hours")}
    if given:
        with pytest.raises(UserError):
            open_rules(tmp_path / "old", given)
    assert (tmp_path / "old/arena.json").read_text() == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as an arena's rules"),
        ("[1]", "holds '[1]', expected an object"),
        ('{"trials": "x"}', "trials is 'x', expected a number of at least 1"),
        ('{"colour": 1}', "there is no rule 'colour'"),
        ('{"tables": {"a": 1}}', "a is 1, expected a table"),
    ],
)
def test_damaged_rules_are_told(tmp_path: Path, text: str, words: str) -> None:
    """With the file, and what to do; it is left as it is."""
    (tmp_path / "arena.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(words)) as told:
        open_rules(tmp_path, {"trials": 3})
    assert "restore it from a copy" in str(told.value)
    assert (tmp_path / "arena.json").read_text() == text


def test_cores_are_those_allowed_each_once() -> None:
    """Siblings come last, none is lost."""
    cores = arena._cores()
    assert len(set(cores)) == len(cores)
    if hasattr(os, "sched_getaffinity"):
        assert set(cores) == os.sched_getaffinity(0)


def test_hours_are_those_that_sessions_were_at_work() -> None:
    """From a session's start to its last event; what lies between sessions does not count."""
    kinds = [
        "start_session",
        "close_trial",
        "stop_session",
        "arena_pair",
        "start_session",
        "close_trial",
    ]
    times = [1000.0, 4600.0, 8200.0, 90_000.0, 100_000.0, 103_600.0]
    events = [
        Event(seq=n, at=at, kind=kind, body={})
        for n, (kind, at) in enumerate(zip(kinds, times, strict=True), start=1)
    ]
    found = arena._with_hours(SimpleNamespace(events=lambda: events))  # type: ignore[arg-type]
    assert [hours for _, hours in found] == [0.0, 1.0, 2.0, 2.0, 2.0, 3.0]
