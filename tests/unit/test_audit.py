"""The audit's statistics on made-up presentations: leaks of several kinds, honest noise, decoys."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.referee.audit import (
    LONE_ROWS,
    MAX_DECOYS,
    Decoys,
    compare,
    make_decoys,
    pick_lone,
)

ROWS, CONTEXT = 120, 32


def rows_of(num_rows: int = ROWS, context: int = CONTEXT, seed: int = 0) -> np.ndarray:
    """Random rows (n, context + 1)."""
    return np.random.default_rng(seed).integers(1, 500, (num_rows, context + 1)).astype(np.int32)


@pytest.fixture
def decoys() -> Decoys:
    """Decoys of random rows."""
    return make_decoys(rows_of(), 8, seed=1)


def honest(seed: int = 0) -> np.ndarray:
    """Nats of a first presentation."""
    return np.random.default_rng(seed).gamma(2.0, 1.5, (ROWS, CONTEXT)).astype(np.float32)


def again(first: np.ndarray, decoys: Decoys, noise: float = 0.0, seed: int = 9) -> np.ndarray:
    """An honest second presentation: equal up to the cut, anything after it."""
    rng = np.random.default_rng(seed)
    second = first[decoys.source] + rng.normal(0, noise, (len(decoys.source), CONTEXT))
    for i in np.flatnonzero(~decoys.is_control):
        second[i, decoys.cut[i] :] = rng.gamma(2.0, 4.0, CONTEXT - decoys.cut[i])
    return second.astype(np.float32)


def finding(first: np.ndarray, second: np.ndarray, decoys: Decoys) -> str:
    """What the audit says of two presentations."""
    return compare(first[decoys.source], second, decoys).finding


@given(
    num_rows=st.integers(2, 40),
    context=st.integers(8, 24),
    chunk=st.integers(1, 16),
    seed=st.integers(0, 2**31),
)
def test_decoys_share_the_past_and_lose_the_future(
    num_rows: int, context: int, chunk: int, seed: int
) -> None:
    """Each comes from a row of its own; controls are whole, others another row's from the cut."""
    rows = rows_of(num_rows, context)
    decoys = make_decoys(rows, chunk, seed)
    assert len(decoys.rows) == min(num_rows, max(MAX_DECOYS, chunk))
    assert len(set(decoys.source.tolist())) == len(decoys.source)
    assert decoys.is_control.any()
    assert not decoys.is_control.all()
    for row, source, cut, is_control in zip(
        decoys.rows, decoys.source, decoys.cut, decoys.is_control, strict=True
    ):
        assert 1 <= cut < context
        assert (row[:cut] == rows[source, :cut]).all()
        if is_control:
            assert (row == rows[source]).all()
        else:
            donors = (rows[:, cut:] == row[cut:]).all(axis=1)
            assert donors[np.arange(num_rows) != source].any()


def test_cuts_fall_everywhere() -> None:
    """A model that reads ahead only at the start of a row is met as well."""
    cuts = make_decoys(rows_of(2000, 16), 8, seed=3).cut
    assert set(cuts.tolist()) == set(range(1, 16))


@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-3, 0.05])
@pytest.mark.parametrize("seed", range(8))
def test_honest_models_pass(noise: float, seed: int) -> None:
    """Kernels that differ a little, or bfloat16 ones that differ more, are no finding."""
    decoys = make_decoys(rows_of(), 8, seed)
    first = honest(seed)
    assert finding(first, again(first, decoys, noise, seed), decoys) == ""


@pytest.mark.parametrize("reach", [1, 2, 8, CONTEXT])
def test_reading_ahead_is_the_future(decoys: Decoys, reach: int) -> None:
    """A model that sees the next `reach` tokens does worse where they are another row's."""
    first = honest()
    second = again(first, decoys)
    for i in np.flatnonzero(~decoys.is_control):
        second[i, max(0, decoys.cut[i] - reach) : decoys.cut[i]] += 2.0 / reach
    assert finding(first, second, decoys) == "future"


def test_a_leak_in_a_tenth_of_the_rows_is_found(decoys: Decoys) -> None:
    """The noise comes from the controls, so that few rows stand out."""
    first = honest()
    second = again(first, decoys, noise=1e-4)
    leaky = np.flatnonzero(~decoys.is_control)[::10]
    for i in leaky:
        second[i, decoys.cut[i] - 1] += 3.0
    assert finding(first, second, decoys) == "future"


def test_a_copy_of_the_next_token_shows_only_at_the_cut(decoys: Decoys) -> None:
    """Before it the copied token is the asked one in both presentations; that one column counts."""
    first = np.full((ROWS, CONTEXT), 0.01, dtype=np.float32)
    second = first[decoys.source].copy()
    is_cut = ~decoys.is_control
    second[np.flatnonzero(is_cut), decoys.cut[is_cut] - 1] = 9.0
    assert finding(first, second, decoys) == "future"


def test_doing_worse_alone_on_the_same_text_is_memory(decoys: Decoys) -> None:
    """Even controls are worse the second time: it lived off other rows."""
    first = honest()
    assert finding(first, again(first, decoys, noise=0.01) + 0.05, decoys) == "memory"


def test_differences_without_gain_are_unrepeatable(decoys: Decoys) -> None:
    """Dropout left on helps nobody, and measures nothing."""
    first = honest()
    assert finding(first, again(first, decoys, noise=0.5), decoys) == "unrepeatable"


def test_doing_better_the_second_time_is_no_cheat(decoys: Decoys) -> None:
    """The test is one-sided: who loses by being scored first did not cheat."""
    first = honest()
    second = again(first, decoys) - 0.05
    assert finding(first, second.astype(np.float32), decoys) == ""


def test_the_report_holds_the_figures(decoys: Decoys) -> None:
    """Gains in nats and sigmas for each distance, and the number of decoys."""
    first = honest()
    report = compare(first[decoys.source], again(first, decoys), decoys)
    assert report.num_decoys == len(decoys.rows) == ROWS
    assert set(report.cut_gain_nats) == set(report.cut_sigmas) == {"1", "8", "64", "all"}
    assert report.cut_gain_nats["all"] == pytest.approx(0.0, abs=1e-6)
    assert report.control_gain_nats == pytest.approx(0.0, abs=1e-6)


def lone_pair(second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nats of rows shown alone: in the scored presentation none were lost."""
    return np.ones_like(second), second.astype(np.float32)


def test_doing_worse_alone_is_memory_where_the_decoys_feed_it_as_well(decoys: Decoys) -> None:
    """What adapts within a batch has equal nats on rows and on decoys, and worse ones alone."""
    first = honest()
    second = again(first, decoys)
    alone = np.random.default_rng(2).normal(1.05, 0.01, (LONE_ROWS, CONTEXT))
    report = compare(first[decoys.source], second, decoys, lone_pair(alone))
    assert report.finding == "memory"
    assert report.lone_gain_nats == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.05])
@pytest.mark.parametrize("seed", range(8))
def test_honest_noise_alone_is_no_finding(decoys: Decoys, noise: float, seed: int) -> None:
    """A kernel that rounds otherwise where its batch is empty errs to both sides."""
    first = honest()
    alone = 1.0 + np.random.default_rng(seed).normal(0.0, noise, (LONE_ROWS, CONTEXT))
    report = compare(first[decoys.source], again(first, decoys), decoys, lone_pair(alone))
    assert report.finding == ""


@pytest.mark.parametrize("num_rows", [1, 5, 500])
def test_lone_rows_are_different_rows(num_rows: int) -> None:
    """As many as there are, up to LONE_ROWS."""
    picked = pick_lone(num_rows, seed=3)
    assert len(set(picked.tolist())) == min(num_rows, LONE_ROWS)
    assert all(0 <= row < num_rows for row in picked)
