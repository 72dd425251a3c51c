"""Proposals that are turned down before they cost a run."""

from __future__ import annotations

import pytest

from autoresearch.search.history import History
from autoresearch.search.proposal import Refusal, check_proposal, nearer_baseline
from autoresearch.values.constants import fingerprint
from autoresearch.values.records import Decision, Trial, Verdict

PARENT = "SEED = 1\nLR = 0.02\ndef build_model(run): ...\ndef main(run): ...\n"


def refuse(source: str, history: History | None = None) -> Refusal:
    """The refusal of `source` on top of PARENT."""
    refusal = check_proposal(source, PARENT, history or History())
    assert refusal is not None
    return refusal


def make_history(source: str, decision: Decision | None) -> History:
    """One trial of `source`."""
    trial = Trial(
        trial_id=12, commit="c", parent="p", description="d", researcher="r", parameters=None,
        is_simplification=False, at=0.0, decision=decision,
    )  # fmt: skip
    return History(trials=(trial,), fingerprints={fingerprint(source): 12})


def test_a_change_passes() -> None:
    """Another value, or another program altogether, is worth a run."""
    assert check_proposal(PARENT.replace("0.02", "0.03"), PARENT, History()) is None
    moved = "def main(run): ...\nfrom blocks import make as build_model\n"
    assert check_proposal(moved, PARENT, History()) is None
    assigned = "if True:\n    main = build_model = print\n"
    assert check_proposal(assigned, PARENT, History()) is None


@pytest.mark.parametrize(
    ("source", "kind", "words"),
    [
        (PARENT + "#" + ("x" * 70 + "\n#") * 1900, "too_large", "at most 131072"),
        (PARENT + "X = '" + "x" * 400 + "'", "too_large", "line 5 has 406 characters"),
        ("def main(", "no_python", "does not parse"),
        (PARENT + "A = 1  # x [2, 1]\n", "no_python", "low < high"),
        ("def main(run): ...\n", "incomplete", "does not define build_model"),
        ("X = 1\n", "incomplete", "build_model and main"),
        (PARENT + "# a comment\n", "no_change", "nothing changed"),
        (PARENT, "no_change", "nothing changed"),
        (PARENT.replace("SEED = 1", "SEED = 2"), "seed_only", "seed"),
    ],
)
def test_hopeless_proposals_are_refused(source: str, kind: str, words: str) -> None:
    """Each with a word for programs and a sentence for people."""
    refusal = refuse(source)
    assert refusal.kind == kind
    assert words in refusal.reason


def test_a_repeat_names_trial_and_verdict() -> None:
    """The same program was tried: the ledger answers instead of a run."""
    source = PARENT.replace("0.02", "0.03")
    tried = make_history(source, Decision(verdict=Verdict.DISCARD, reason="worse by 0.01"))
    refusal = refuse(source + "# again\n", tried)
    assert refusal.kind == "repeat"
    assert "trial 12 (discard: worse by 0.01)" in refusal.reason
    assert "still running" in refuse(source, make_history(source, None)).reason
    stopped = make_history(source, Decision(verdict=Verdict.INTERRUPTED, reason="Ctrl-C"))
    assert check_proposal(source, PARENT, stopped) is None


def test_the_baseline_is_a_repeat_too() -> None:
    """A champion has another program, and the way back is known not to pay."""
    baseline = PARENT.replace("0.02", "0.03")
    history = History(baseline_fingerprint=fingerprint(baseline))
    refusal = refuse(baseline + "# as it was\n", history)
    assert refusal.kind == "repeat"
    assert "the baseline's program" in refusal.reason


def test_an_edit_of_the_baseline_instead_of_the_champion_is_known() -> None:
    """By the lines that differ; where neither is nearer nothing is said."""
    champion = PARENT.replace("LR = 0.02", "LR = 0.05\nDEPTH = 4")
    stale = PARENT.replace("SEED = 1", "WIDTH = 64\nSEED = 1")
    found = nearer_baseline(stale, PARENT, champion)
    assert "nearer to the baseline (lines changed: 1) than to the champion (3)" in found
    assert "0)" in nearer_baseline(PARENT, PARENT, champion)
    assert not nearer_baseline(champion.replace("DEPTH = 4", "DEPTH = 5"), PARENT, champion)
    assert not nearer_baseline(stale, PARENT, PARENT)
    assert not nearer_baseline("x" * 200_000, PARENT, champion)


def test_lone_surrogates_are_refused_not_a_crash() -> None:
    """Text that no file can hold."""
    assert check_proposal(PARENT + "X = '\ud800'\n", PARENT, History()) is not None
