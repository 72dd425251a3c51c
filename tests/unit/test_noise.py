"""The noise: estimators against simulated machines, with and without drift."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from autoresearch.search.history import History
from autoresearch.search.noise import (
    default_gap_s,
    measure_noise,
    should_pair,
    shows_drift,
)
from autoresearch.values.config import JudgeSettings
from autoresearch.values.records import Measurement, Outcome, Purpose


def make_history(
    scores: list[float], commit: str = "base", purpose: Purpose = Purpose.CALIBRATE, start: int = 1
) -> tuple[Measurement, ...]:
    """Runs of one commit, one every ten seconds."""
    return tuple(
        Measurement(
            run_id=start + n,
            commit=commit,
            purpose=purpose,
            seed=n,
            outcome=Outcome.SCORED,
            val_bpb=score,
            at=10.0 * (start + n),
            total_s=10.0,
        )
        for n, score in enumerate(scores)
    )


def test_unpaired_noise_is_pooled_within_commits() -> None:
    """Deviations from each commit's own mean, divided by runs minus commits."""
    runs = make_history([1.0, 1.2]) + make_history([3.0, 3.2, 3.4], "new", Purpose.CHAMPION, 10)
    noise = measure_noise(History(runs=runs))
    assert noise.degrees_of_freedom == 3
    assert noise.sigma_bpb == pytest.approx(math.sqrt((0.02 + 0.08) / 3))
    assert noise.run_sigma_bpb == noise.sigma_bpb


def test_selected_and_failed_runs_do_not_count() -> None:
    """Screens, replicates, confirmations, NaN and crashes say nothing about the noise."""
    runs = make_history([1.0, 1.2, math.nan])
    for purpose in (Purpose.SCREEN, Purpose.REPLICATE, Purpose.CONFIRM, Purpose.TRAIN):
        runs += make_history([9.0, 1.0], "base", purpose, 50)
    assert measure_noise(History(runs=runs)).degrees_of_freedom == 1


def test_unknown_noise_has_no_degrees_of_freedom() -> None:
    """One run a commit, or none: not known, paired or not."""
    for history in (History(), History(runs=make_history([1.0]))):
        for is_paired in (True, False):
            noise = measure_noise(history, is_paired)
            assert (noise.sigma_bpb, noise.degrees_of_freedom) == (0.0, 0)


def test_paired_noise_ignores_drift() -> None:
    """A machine that slows down steadily: the paired estimate stays that of a difference."""
    rng = random.Random(1)
    paired, unpaired = [], []
    for _ in range(300):
        scores = [2.0 + 0.02 * n + rng.gauss(0, 0.01) for n in range(6)]
        history = History(runs=make_history(scores))
        paired.append(measure_noise(history, True).sigma_bpb ** 2)
        unpaired.append(measure_noise(history).sigma_bpb ** 2)
    drift_free = math.sqrt(statistics.fmean(paired) - 0.02**2)
    assert drift_free == pytest.approx(0.01 * math.sqrt(2), rel=0.1)
    assert math.sqrt(statistics.fmean(unpaired)) > 0.035


def test_paired_degrees_of_freedom_match_the_spread_of_the_estimate() -> None:
    """The mean square varies like a chi-square with the stated degrees of freedom."""
    rng = random.Random(2)
    squares = []
    for _ in range(1500):
        history = History(runs=make_history([rng.gauss(2, 0.01) for _ in range(13)]))
        squares.append(measure_noise(history, True).sigma_bpb ** 2)
    freedom = 2 * statistics.fmean(squares) ** 2 / statistics.variance(squares)
    assert freedom == pytest.approx(2 * 12**2 / (3 * 12 - 1), rel=0.2)
    assert measure_noise(history, True).degrees_of_freedom == 8
    assert math.sqrt(statistics.fmean(squares)) == pytest.approx(0.01 * math.sqrt(2), rel=0.05)


def test_paired_noise_leaves_out_long_gaps() -> None:
    """Runs of one commit hours apart are no neighbours."""
    runs = make_history([1.0, 1.2]) + make_history([5.0], start=1000)
    assert measure_noise(History(runs=runs), True).degrees_of_freedom == 1
    assert measure_noise(History(runs=runs), True, max_gap_s=1e9).degrees_of_freedom == 1
    assert measure_noise(History(runs=runs), True, max_gap_s=1e9).sigma_bpb > 2


def test_gap_comes_from_the_length_of_runs() -> None:
    """Two and a half runs of median length; unknown lengths set no limit."""
    assert default_gap_s(make_history([1.0, 1.1, 1.2])) == 25.0
    assert default_gap_s([]) == math.inf


def test_pairing_is_chosen_by_config_device_and_drift() -> None:
    """On, off, or auto: not on CUDA unless fresh runs wander."""
    auto = JudgeSettings()
    still = History(runs=make_history([2.0, 2.01, 1.99, 2.0, 2.02, 1.98, 2.01, 2.0]))
    wandering = History(runs=make_history([2.0 + 0.01 * n for n in range(10)]))
    assert should_pair(auto, "cpu", still)
    assert not should_pair(auto, "cuda:0", still)
    assert should_pair(auto, "cuda:0", wandering)
    assert not should_pair(JudgeSettings(pairing="off"), "cpu", wandering)
    assert should_pair(JudgeSettings(pairing="on"), "cuda:0", still)


def test_drift_is_rarely_seen_where_there_is_none() -> None:
    """Independent runs are called drifting at most a few times in a hundred."""
    rng = random.Random(3)
    alarms = sum(
        shows_drift(History(runs=make_history([rng.gauss(2, 0.01) for _ in range(10)])))
        for _ in range(600)
    )
    assert alarms / 600 < 0.03
    assert not shows_drift(History(runs=make_history([2.0] * 10)))
