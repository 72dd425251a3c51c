"""When a session ends by itself, and how a person ends it.

Nothing here is on by default: the loop goes on until somebody stops it. Ctrl-C once finishes the
trial in hand and says so, a second one stops it; SIGTERM is like the second.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType

from autoresearch.search.history import History
from autoresearch.values.config import SessionSettings
from autoresearch.values.records import Verdict

STDERR = 2
FIRST_ANSWER = b"\nfinishing what is in hand; Ctrl-C again stops at once\n"
REFUSALS_IN_A_ROW, LONGEST_PAUSE_S = 10, 3600.0


def stop_reason(
    settings: SessionSettings, history: History, champion_bpb: float | None, hours: float
) -> str:
    """Why the session should end now, or ""; `hours` is the time that this session has run."""
    closed = [trial for trial in history.trials if trial.decision is not None]
    if settings.max_trials and len(closed) >= settings.max_trials:
        return f"{len(closed)} trials are done (max_trials = {settings.max_trials})"
    if settings.max_hours and hours >= settings.max_hours:
        return f"{hours:.2f} hours have passed (max_hours = {settings.max_hours:g})"
    if settings.target_bpb and champion_bpb is not None and champion_bpb <= settings.target_bpb:
        return f"the champion scores {champion_bpb:.4f} (target_bpb = {settings.target_bpb:g})"
    kept = [
        i
        for i, trial in enumerate(closed)
        if trial.decision and trial.decision.verdict is Verdict.KEEP
    ]
    since = len(closed) - (kept[-1] + 1 if kept else 0)
    if settings.plateau_trials and since >= settings.plateau_trials:
        return f"{since} trials without a keep (plateau_trials = {settings.plateau_trials})"
    return ""


def pause_s(refusals: int, backoff_s: float) -> float:
    """Seconds to wait for better ideas: after every tenth refusal in a row, twice as long each."""
    if not refusals or refusals % REFUSALS_IN_A_ROW:
        return 0.0
    doublings = min(refusals // REFUSALS_IN_A_ROW - 1, 30)
    return float(min(backoff_s * 2**doublings, LONGEST_PAUSE_S))


class Interrupts:
    """Signals while a session runs: `is_wanted` after the first Ctrl-C, KeyboardInterrupt at the
    second.
    """

    def __init__(self) -> None:
        self.is_wanted = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.is_wanted or number == signal.SIGTERM:
            raise KeyboardInterrupt
        self.is_wanted = True
        with contextlib.suppress(OSError):  # no print: the signal may have come amid another
            os.write(STDERR, FIRST_ANSWER)
