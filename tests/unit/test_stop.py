"""Stop rules and Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from autoresearch.search.history import History
from autoresearch.search.stop import Interrupts, stop_reason
from autoresearch.values.config import SessionSettings
from autoresearch.values.records import Decision, Trial, Verdict


def history_of(*verdicts: Verdict | None) -> History:
    """A history whose trials ended so; None is still in hand."""
    trials = tuple(
        Trial(
            trial_id=i,
            commit=f"c{i}",
            parent="p",
            description="",
            researcher="scripted",
            parameters=None,
            is_simplification=False,
            at=0.0,
            decision=Decision(verdict=verdict, reason="") if verdict else None,
        )
        for i, verdict in enumerate(verdicts, start=1)
    )
    return History(trials=trials)


DISCARD, KEEP = Verdict.DISCARD, Verdict.KEEP


@pytest.mark.parametrize(
    ("settings", "verdicts", "bpb", "hours", "expected"),
    [
        ({}, (DISCARD,) * 50, 0.1, 1e6, ""),
        ({"max_trials": 2}, (DISCARD, None), None, 0.0, ""),
        ({"max_trials": 2}, (DISCARD, KEEP), None, 0.0, "2 trials are done"),
        ({"max_hours": 1.5}, (), None, 1.4, ""),
        ({"max_hours": 1.5}, (), None, 1.5, "1.50 hours have passed"),
        ({"target_bpb": 1.0}, (), 1.1, 0.0, ""),
        ({"target_bpb": 1.0}, (), None, 0.0, ""),
        ({"target_bpb": 1.0}, (), 1.0, 0.0, "the champion scores 1.0000"),
        ({"plateau_trials": 2}, (DISCARD, KEEP, DISCARD), None, 0.0, ""),
        ({"plateau_trials": 2}, (KEEP, DISCARD, DISCARD), None, 0.0, "2 trials without a keep"),
        ({"plateau_trials": 2}, (DISCARD, DISCARD), None, 0.0, "2 trials without a keep"),
    ],
)
def test_stop_rules(
    settings: dict[str, float],
    verdicts: tuple[Verdict | None, ...],
    bpb: float | None,
    hours: float,
    expected: str,
) -> None:
    """Each rule fires at its limit, not before; without rules nothing ends."""
    reason = stop_reason(SessionSettings(**settings), history_of(*verdicts), bpb, hours)
    assert reason.startswith(expected)
    assert bool(reason) == bool(expected)


def test_ctrl_c_once_is_a_wish_and_twice_an_order(capfd: pytest.CaptureFixture[str]) -> None:
    """The first is remembered and answered, the second raises; then the old handlers are back."""
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        assert not interrupts.is_wanted
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.is_wanted
        assert "finishing what is in hand; Ctrl-C again stops at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_is_an_order_at_once() -> None:
    """A service manager does not ask twice."""
    with Interrupts(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    """Python allows handlers there only."""
    before, seen = signal.getsignal(signal.SIGINT), []

    def enter() -> None:
        with Interrupts() as interrupts:
            seen.append(interrupts.is_wanted)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [False]
    assert signal.getsignal(signal.SIGINT) is before
