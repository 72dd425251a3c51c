"""Who watches a session: a terminal, a test, nobody."""

from __future__ import annotations

from typing import Any, Protocol

from autoresearch.search.history import History
from autoresearch.values.records import Measurement, Purpose, Trial


class Observer(Protocol):
    """Who watches a session; every call returns at once."""

    def session_started(self, history: History) -> None:
        """The loop begins, or goes on."""

    def run_started(self, purpose: Purpose, why: str) -> None:
        """A run begins."""

    def progress(self, elapsed_s: float, telemetry: dict[str, Any]) -> None:
        """The candidate reported something."""

    def run_finished(self, measurement: Measurement) -> None:
        """A run ended."""

    def trial_started(self, trial: Trial) -> None:
        """A proposal was committed."""

    def trial_closed(self, trial: Trial, history: History) -> None:
        """A verdict fell."""

    def note(self, text: str) -> None:
        """Something that a person should know."""

    def session_stopped(self, reason: str, history: History) -> None:
        """The loop ended."""
