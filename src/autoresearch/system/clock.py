"""Time, as something that tests can move.

Durations come from the monotonic clock, which stops while the machine sleeps and never jumps. The
wall clock and the boot clock (which goes on during sleep) are read beside it only to notice sleep
and jumps: `Drift`.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the referee and the session know of time, in seconds."""

    def monotonic(self) -> float:
        """Seconds since some moment; never jumps."""

    def wall(self) -> float:
        """Unix time."""

    def boot(self) -> float:
        """Seconds since some moment, sleep included."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        """Seconds since some moment; never jumps."""
        return time.monotonic()

    def wall(self) -> float:
        """Unix time."""
        return time.time()

    def boot(self) -> float:
        """Seconds since some moment, sleep included.

        The monotonic clock where there is no boot clock.
        """
        if hasattr(time, "CLOCK_BOOTTIME"):
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class FakeClock:
    """A clock that moves only when told to; `wall_jump_s` and `boot_jump_s` shift the other two."""

    def __init__(self, start: float = 1000.0) -> None:
        self.now = start
        self.wall_jump_s = 0.0
        self.boot_jump_s = 0.0

    def monotonic(self) -> float:
        """Seconds since some moment; never jumps."""
        return self.now

    def wall(self) -> float:
        """Unix time."""
        return 1_700_000_000.0 + self.now + self.wall_jump_s

    def boot(self) -> float:
        """Seconds since some moment, sleep included."""
        return self.now + self.boot_jump_s

    def sleep(self, seconds: float) -> None:
        """Move on by `seconds` at once."""
        self.now += seconds


class Drift:
    """Notices that the wall or boot clock and the monotonic one ran apart since this was made."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start = self._read()

    def _read(self) -> tuple[float, float]:
        monotonic = self._clock.monotonic()
        return self._clock.wall() - monotonic, self._clock.boot() - monotonic

    def seconds(self) -> float:
        """The larger of the two drifts, without sign."""
        wall, boot = self._read()
        return max(abs(wall - self._start[0]), abs(boot - self._start[1]))
