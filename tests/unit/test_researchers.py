"""What each researcher does beyond the protocol (tests/contract/test_researcher.py has that)."""

from __future__ import annotations

import dataclasses
import logging
import math
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

from autoresearch.search.history import History, RefusedProposal
from autoresearch.search.researchers import Exhausted, make_researcher
from autoresearch.search.researchers.cmaes import CmaesResearcher
from autoresearch.search.researchers.random import RandomResearcher
from autoresearch.search.researchers.scripted import (
    ScriptedEdit,
    ScriptedResearcher,
    read_script,
)
from autoresearch.search.researchers.space import (
    draw,
    from_unit,
    searchable_constants,
    step,
    tidy,
    to_unit,
)
from autoresearch.search.researchers.tpe import TpeResearcher, known_points, pruned_points
from autoresearch.values.config import ResearcherSettings
from autoresearch.values.constants import parse_constants
from autoresearch.values.errors import UserError
from autoresearch.values.records import (
    Decision,
    Measurement,
    Outcome,
    Purpose,
    Trial,
    Verdict,
)

SOURCE = """
RATE = 0.02  # step size [0.001, 1.0] log
DEPTH = 2  # blocks [1, 12]
BATCH = 32  # rows [8, 512] log
DECAY = 0.0  # weight decay [0.0, 0.5]
PATTERN = "SL"  # windows {"SL", "L", "SSL"}
FUSED = True  # kernels {True, False}
FIXED = 7  # not searched
"""
PARAMETERS = {
    "RATE": 0.02,
    "DEPTH": 2,
    "BATCH": 32,
    "DECAY": 0.0,
    "PATTERN": "SL",
    "FUSED": True,
}


def make_run(run_id: int, commit: str, score: float | None, purpose: Purpose) -> Measurement:
    """One run."""
    outcome = Outcome.CRASH if score is None else Outcome.SCORED
    return Measurement(
        run_id=run_id, commit=commit, purpose=purpose, seed=1, outcome=outcome, val_bpb=score
    )


def make_trial(trial_id: int, decision: Decision | None, **changes: object) -> Trial:
    """A trial on the baseline with constants of its own."""
    fields: dict[str, object] = {
        "trial_id": trial_id,
        "commit": f"c{trial_id}",
        "parent": "base",
        "description": "",
        "researcher": "tpe",
        "parameters": {**PARAMETERS, "RATE": 0.02 + trial_id / 1000},
        "is_simplification": False,
        "at": 0.0,
        "decision": decision,
    }
    return Trial(**{**fields, **changes})  # type: ignore[arg-type]


def scored(bpb: float, gain: float | None = None, verdict: Verdict = Verdict.DISCARD) -> Decision:
    """A verdict with a score."""
    return Decision(verdict=verdict, reason="", val_bpb=bpb, gain_bpb=gain)


def make_history(num_trials: int, **changes: object) -> History:
    """A calibrated baseline and trials of which those with a RATE near 0.1 score best."""
    rng = random.Random(5)
    constants = searchable_constants(SOURCE)
    trials = []
    for trial_id in range(1, num_trials + 1):
        values = {name: draw(constant, rng) for name, constant in constants.items()}
        score = 2.0 + 0.1 * abs(math.log10(values["RATE"] / 0.1))
        trials.append(make_trial(trial_id, scored(score, 2.13 - score), parameters=values))
    fields: dict[str, object] = {
        "baseline": "base",
        "champion": "base",
        "baseline_constants": PARAMETERS,
        "runs": tuple(make_run(n, "base", 2.13, Purpose.CALIBRATE) for n in range(1, 7)),
        "trials": tuple(trials),
    }
    return History(**{**fields, **changes})  # type: ignore[arg-type]


def test_draws_stay_in_their_ranges() -> None:
    """Random draws, steps and places from 0 to 1 give legal values, rounded for reading."""
    rng = random.Random(0)
    for constant in searchable_constants(SOURCE).values():
        for _ in range(300):
            for value in (draw(constant, rng), step(constant, rng)):
                assert type(value) is type(constant.value)
                if constant.choices:
                    assert value in constant.choices
                else:
                    assert constant.low is not None
                    assert constant.high is not None
                    assert constant.low <= value <= constant.high
                    assert constant.is_int or value == float(f"{value:.3g}")
            assert step(constant, rng) != constant.value


def test_logarithmic_ranges_are_drawn_evenly_over_their_logarithm() -> None:
    """Half of the draws of [0.001, 1] log lie under its geometric middle."""
    rng = random.Random(1)
    rate = searchable_constants(SOURCE)["RATE"]
    low = sum(draw(rate, rng) < math.sqrt(0.001) for _ in range(2000))
    assert 850 < low < 1150
    assert to_unit(rate, 1.0) == pytest.approx(1)
    assert from_unit(rate, to_unit(rate, 0.05)) == 0.05
    assert from_unit(rate, 7.0) == 1.0
    assert tidy(rate, 0.123456) == 0.123


def test_ranges_with_one_whole_number_have_one_place() -> None:
    """[2, 2.5] of a whole constant leaves nothing to move; no division by zero."""
    only = searchable_constants("A = 2  # x [2, 2.5]\n")["A"]
    assert to_unit(only, 2) == 0.0
    assert step(only, random.Random(0)) == 2


def test_a_value_outside_its_range_is_searched_from_the_nearest_end() -> None:
    """An edit may leave a constant outside the range of its comment."""
    source = "A = 5.0  # x [0, 1]\nB = 900  # x [8, 512] log\n"
    proposal = TpeResearcher().propose(History(), "c", source)
    values = parse_constants(proposal.source)
    assert values["A"].value <= 5.0
    assert proposal.description


def test_description_says_what_changed() -> None:
    """Old and new values, in the order of the file's constants."""
    proposal = RandomResearcher(seed=3).propose(History(), "commit", SOURCE)
    parts = proposal.description.split(", ")
    assert all(" -> " in part for part in parts)
    assert proposal.parameters is not None
    for part in parts:
        name, old, _, new = part.split(" ")
        assert str(PARAMETERS[name]) == old
        assert str(proposal.parameters[name]) == new
    assert "FIXED" not in proposal.parameters


def test_source_without_ranges_is_an_error() -> None:
    """Optimizers need something to search; the message shows what such a line looks like."""
    for researcher in (RandomResearcher(), TpeResearcher()):
        with pytest.raises(UserError, match="no constant to search"):
            researcher.propose(History(), "c", "X = 1\n")


def test_used_up_space_ends_the_search() -> None:
    """Two programs in all, one is the champion, the other was tried: nothing is left."""
    source = "A = True  # x {True, False}\n"
    researcher = RandomResearcher()
    first = researcher.propose(History(), "c", source)
    assert "A = False" in first.source
    from autoresearch.values.constants import fingerprint

    tried = History(
        trials=(make_trial(1, scored(2.0)),), fingerprints={fingerprint(first.source): 1}
    )
    with pytest.raises(Exhausted, match="100 times"):
        researcher.propose(tried, "c", source)


def test_tpe_starts_with_steps_and_draws_in_turn() -> None:
    """A step moves a quarter to two thirds of the constants, a draw all that it can."""
    for num in range(7):
        refusals = (
            RefusedProposal(seq=1, at=0, researcher="tpe", description="", reason=""),
        ) * num
        proposal = TpeResearcher().propose(make_history(0, refusals=refusals), "base", SOURCE)
        num_moved = proposal.description.count(" -> ")
        assert num_moved >= 4 if num % 2 else 1 <= num_moved <= 4


def test_tpe_goes_where_scores_are_low() -> None:
    """With 25 trials known, proposals that move RATE gather near the best."""
    history = make_history(25)
    distances = []
    for seed in range(12):
        proposal = TpeResearcher(seed=seed).propose(history, "base", SOURCE)
        assert proposal.parameters is not None
        if proposal.parameters["RATE"] != 0.02:
            distances.append(abs(math.log10(proposal.parameters["RATE"] / 0.1)))
    assert len(distances) >= 3
    assert sorted(distances)[len(distances) // 2] < 0.6  # a joint draw: 0.75 in the middle


def test_tpe_leaves_logging_and_warnings_as_they_were(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """Optuna is imported late, says nothing, and its own settings survive."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.INFO)
    with caplog.at_level(logging.DEBUG):
        TpeResearcher().propose(make_history(12), "base", SOURCE)
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    assert not caplog.records
    assert not recwarn.list


def test_points_are_on_one_scale() -> None:
    """Fresh means where there are any, else the parent's mean less what the trial gained."""
    runs = (
        make_run(1, "base", 2.10, Purpose.CALIBRATE),
        make_run(2, "base", 2.20, Purpose.CALIBRATE),
        make_run(3, "c1", 1.0, Purpose.SCREEN),
        make_run(4, "c1", 1.95, Purpose.CHAMPION),
    )
    trials = (
        make_trial(1, scored(1.9, 0.3, Verdict.KEEP)),
        make_trial(2, scored(1.7, -0.05), parent="c1"),  # on a fast moment of the machine
        make_trial(3, scored(2.4)),  # no gain known
        make_trial(4, Decision(verdict=Verdict.CRASH, reason="")),
        make_trial(5, Decision(verdict=Verdict.CHEAT, reason="")),
        make_trial(6, scored(1.0), parameters=None),
        make_trial(7, None),
    )
    points = known_points(make_history(0, runs=runs, trials=trials))
    assert [round(score, 6) for _, score in points] == [2.15, 1.95, 2.0, 2.4, 2.15]
    assert points[-1][0]["RATE"] == 0.024
    points = known_points(make_history(0, runs=runs, trials=(*trials[3:4], *trials[:3])))
    assert [round(score, 6) for _, score in points] == [2.15, 2.15, 1.95, 2.0, 2.4]  # in order
    assert known_points(History(trials=trials[3:4])) == []


def test_what_early_stop_ended_is_censored_data() -> None:
    """No score is made up for it, and proposals keep away from where runs were ended."""
    stop = make_run(1, "c", None, Purpose.SCREEN)
    mark = {"second": 12.4, "loss": 5.5, "limit": 5.0, "is_spared": False}
    stop = dataclasses.replace(stop, outcome=Outcome.STOPPED, early_stop=mark)
    ended = Decision(verdict=Verdict.DISCARD, reason="stopped early")
    history = make_history(25)
    trials = tuple(
        dataclasses.replace(t, decision=ended, runs=(stop,))
        if t.parameters and not 0.02 < t.parameters["RATE"] < 0.5
        else t
        for t in history.trials
    )
    history = dataclasses.replace(history, trials=trials)
    num_stopped = len(pruned_points(history))
    assert num_stopped >= 5
    assert {(second, loss) for _, second, loss in pruned_points(history)} == {(12, 5.5)}
    assert len(known_points(history)) == 1 + 25 - num_stopped
    rates = []
    for seed in range(12):
        proposal = TpeResearcher(seed=seed).propose(history, "base", SOURCE)
        assert proposal.parameters is not None
        if proposal.parameters["RATE"] != 0.02:
            rates.append(proposal.parameters["RATE"])
    assert len(rates) >= 3
    assert sum(0.015 < rate < 0.6 for rate in rates) > len(rates) / 2  # of a draw: half


def test_cmaes_learns_from_whole_populations() -> None:
    """On a quadratic the mean of late proposals lies nearer the best place than the start did."""
    best = {"RATE": 0.3, "DEPTH": 9}

    def distance(values: Any) -> float:
        return abs(math.log(values["RATE"] / best["RATE"])) + abs(values["DEPTH"] - best["DEPTH"])

    researcher, trials = CmaesResearcher(seed=1), ()
    for number in range(1, 49):
        history = make_history(0, trials=trials)
        proposal = researcher.propose(history, "base", SOURCE)
        values = proposal.parameters
        assert values is not None
        decision = scored(2 + distance(values))
        trials = (*trials, make_trial(number, decision, parameters=values))
    late = [distance(trial.parameters) for trial in trials[-8:]]
    assert statistics.fmean(late) < 0.5 * distance(PARAMETERS)
    with pytest.raises(UserError, match="two searchable constants"):
        researcher.propose(make_history(0), "base", "RATE = 0.1  # step size [0.01, 1.0]\n")


def test_tpe_survives_other_ranges() -> None:
    """The champion's source may have lost, gained or renamed constants and choices."""
    other = SOURCE.replace('{"SL", "L", "SSL"}', '{"SL", "XL"}').replace("DECAY", "NEW")
    other = other.replace("[1, 12]", "[4, 6]") + "TEXT = 1.5  # was a text [1, 2]\n"
    trials = make_history(20).trials
    odd = make_trial(21, scored(2.0), parameters={**PARAMETERS, "TEXT": "old"})
    history = make_history(0, trials=(*trials, odd))
    for seed in range(5):
        proposal = TpeResearcher(seed=seed).propose(history, "base", other)
        assert proposal.parameters is not None
        assert set(proposal.parameters) == {
            "RATE",
            "DEPTH",
            "BATCH",
            "NEW",
            "PATTERN",
            "FUSED",
            "TEXT",
        }


def test_scripted_goes_through_its_list() -> None:
    """Whole sources and constants in turn; then it is exhausted."""
    edits = [
        ScriptedEdit(source="X = 1\n", description="whole"),
        ScriptedEdit(constants={"RATE": 0.5}, is_simplification=True),
        ScriptedEdit(source="X = 2\n"),
    ]
    researcher = ScriptedResearcher(edits)
    first = researcher.propose(History(), "c", SOURCE)
    assert (first.source, first.description, first.parameters) == ("X = 1\n", "whole", None)
    one = History(trials=(make_trial(1, None, researcher="scripted"),))
    second = researcher.propose(one, "c", SOURCE)
    assert second.description == "RATE 0.02 -> 0.5"
    assert second.is_simplification
    assert "RATE = 0.5  # step size" in second.source
    refused = RefusedProposal(seq=1, at=0, researcher="scripted", description="", reason="")
    third = researcher.propose(History(trials=one.trials, refusals=(refused,)), "c", SOURCE)
    assert third.description == "edit 3 of the script"
    done = History(trials=one.trials, refusals=(refused, refused))
    with pytest.raises(Exhausted, match="all 3 edits"):
        researcher.propose(done, "c", SOURCE)


def test_script_folder_is_read_in_order(tmp_path: Path) -> None:
    """Numbered files, .py and .toml; anything else is left alone."""
    (tmp_path / "020-rates.toml").write_text('description = "faster"\n[constants]\nRATE = 0.1\n')
    (tmp_path / "010-whole.py").write_text("# a whole file\nX = 1\n")
    (tmp_path / "030-plain.py").write_text("X = 2\n")
    (tmp_path / "notes.md").write_text("ideas")
    edits = read_script(tmp_path)
    assert [edit.description for edit in edits] == ["a whole file", "faster", "030-plain"]
    assert edits[1].constants == {"RATE": 0.1}
    settings = ResearcherSettings(kind="scripted", script=tmp_path.name)
    assert make_researcher(settings, tmp_path.parent).name == "scripted"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("1.toml", b"not toml", "cannot be read as an edit"),
        ("1.toml", b"[constants]\n", "at least one"),
        ("1.toml", b"constants = 3\n", "at least one"),
        ("1.toml", b"colour = 3\n[constants]\nA = 1\n", "colour"),
        ("1.py", b"\xff\xfe", "cannot be read as an edit"),
        ("1.txt", b"", "expected a folder"),
    ],
)
def test_bad_scripts_are_errors(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    """A file that is no edit, an empty folder: named, with what to do."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_script(tmp_path)


def test_no_script_is_said_to_be_missing(tmp_path: Path) -> None:
    """An empty setting is not the workspace itself, whose autoresearch.toml is no edit."""
    (tmp_path / "autoresearch.toml").write_text("[agent]\n")
    with pytest.raises(UserError, match=r"researcher\.script is '', expected a folder"):
        make_researcher(ResearcherSettings(kind="scripted"), tmp_path)


def test_unknown_researcher_lists_the_known() -> None:
    """A name with a typing error."""
    with pytest.raises(UserError, match="expected one of 'tpe', 'cmaes'"):
        make_researcher(ResearcherSettings(kind="tpee"))


def test_optuna_is_imported_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making researchers and the first local steps need no optuna."""
    for name in [name for name in sys.modules if name.split(".")[0] == "optuna"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "optuna", None)
    researcher = make_researcher(ResearcherSettings(kind="tpe"))
    assert researcher.propose(make_history(2), "base", SOURCE).researcher == "tpe"
