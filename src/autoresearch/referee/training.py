"""The candidate's part of a run: spawn, `ready`, the clock, the weights.

Every failure is an outcome with a reason. Times are monotonic: `startup_s` from spawn to `ready`,
`training_s` from the `start` message, which brings the training tokens, to the arrival of the whole
weights. Whatever the candidate says of itself is telemetry.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import psutil

from autoresearch.referee.host import Host, RunSpec, Seat
from autoresearch.referee.peer import LAST_WORDS_S, PeerGone
from autoresearch.referee.telemetry import Telemetry
from autoresearch.system import nvml
from autoresearch.system.clock import Drift
from autoresearch.system.surroundings import Surroundings
from autoresearch.values.errors import TrialFailed
from autoresearch.values.records import Outcome
from autoresearch.values.text import one_line
from autoresearch.wire.buffer import SharedBuffer
from autoresearch.wire.channel import Message

GRACE_S, GRACE_FRAC = 0.5, 0.005  # how late weights may arrive: the larger of the two
MOST_DRIFT_S = 1.0  # between the clocks; more means that the machine slept
POLL_S = 0.25
MOST_PROCESSES = 512
MOST_WEIGHTS_FRAC = 0.25  # of the memory that a candidate may use; scoring holds them several times
MOST_MESSAGES_PER_S = 100.0

Watch = Callable[
    [float, dict[str, Any]], str
]  # elapsed seconds, telemetry -> a reason to stop, or ""


def never_stop(elapsed_s: float, telemetry: dict[str, Any]) -> str:
    """The watch of a run that nobody wants to cut short."""
    return ""


class Training:
    """One candidate from spawn to its death; `facts` become the measurement's fields."""

    def __init__(self, host: Host, spec: RunSpec, seat: Seat, watch: Watch) -> None:
        self.host = host
        self.spec = spec
        self.seat = seat
        self.candidate = seat.peer
        self.watch = watch
        self.weights = SharedBuffer.create("weights")
        budget_s = host.config.trial.budget_s
        self.telemetry = Telemetry(budget_s)
        self.facts: dict[str, Any] = {"reported": self.telemetry.reported, "budget_s": budget_s}
        self._spawned_at = host.clock.monotonic()

    def prepare(self) -> None:
        """Until `ready`: imports, compilation, warm-up on synthetic tokens.

        Raises:
            TrialFailed: it crashed, or was not ready in time.
        """
        limit = self._spawned_at + self.host.config.trial.startup_limit_s
        self._wait("hello", limit)
        self._send("load", [self.weights.fd], **self.host.settings(self.spec, self.seat))
        body = self._wait("ready", limit)
        self.telemetry.keep({"initial_sum": body.get("initial_sum")})
        self.facts["startup_s"] = self.host.clock.monotonic() - self._spawned_at

    def train(self) -> None:
        """From `start` to `submit`; the budget shrinks by start-up beyond the allowance.

        A script of the reference's kind compiles on its own clock, so that it has the allowance
        once more until it asks to be evaluated.

        Raises:
            TrialFailed: it crashed, overran its time, or the machine slept.
        """
        trial, clock = self.host.config.trial, self.host.clock
        late_s = max(0.0, self.facts["startup_s"] - trial.startup_allowance_s)
        budget_s = max(0.0, trial.budget_s - late_s)
        self.facts.update(budget_s=budget_s, at=clock.wall())
        drift = Drift(clock)
        self.surroundings = Surroundings(self.host.device, clock)
        began = clock.monotonic()
        limit = began + budget_s + max(GRACE_S, GRACE_FRAC * budget_s)
        limit += trial.startup_allowance_s if self.spec.is_script else 0.0
        self._send("start", self.host.shard_fds, budget_s=budget_s)
        self.host.wait_ahead()
        awaited = "evaluate" if self.spec.is_script else "submit"
        try:
            body = self._wait(awaited, limit, started_at=began)
        finally:
            self.facts["training_s"] = clock.monotonic() - began
            self.facts["curve"] = self.telemetry.curve
            self.facts["hardware"] = self._describe_surroundings()
            if drift.seconds() > MOST_DRIFT_S:
                apart = f"the clocks ran apart by {drift.seconds():.1f} s"
                raise TrialFailed(Outcome.DISTURBED, f"{apart}: the machine slept or was reset")
        self.telemetry.keep(body.get("facts"))
        if began + self.facts["training_s"] > limit:
            raise self._too_late(awaited, limit - began)

    def take_weights(self) -> SharedBuffer:
        """End the candidate, then freeze what it wrote: from here on nobody can change a bit.

        Raises:
            TrialFailed: nothing was written, too much, or somebody can still write.
        """
        self.candidate.end()
        size_bytes = self.weights.size_bytes
        most_bytes = int(MOST_WEIGHTS_FRAC * self._memory_limit_bytes())
        if not 0 < size_bytes <= most_bytes:
            reason = (
                f"submitted {size_bytes} bytes of weights, between 1 and {most_bytes} are taken"
            )
            raise TrialFailed(Outcome.CRASH, reason)
        try:
            self.weights.freeze()
        except OSError as error:
            reason = "somebody could still write to the weights after the candidate had been killed"
            raise TrialFailed(Outcome.CHEAT, reason) from error
        self.facts["weight_bytes"] = size_bytes
        return self.weights

    def _wait(self, kind: str, limit: float, started_at: float | None = None) -> dict[str, Any]:
        """The body of the message `kind`; telemetry, memory and the watch on the way."""
        began = now = self.host.clock.monotonic()
        num_messages, polled_at = 0, -math.inf
        while now <= limit:
            if now - polled_at >= POLL_S:
                self._check_usage()
                if started_at is not None:
                    self.surroundings.sample()
                polled_at = now
            message = self._receive(kind, min(POLL_S, limit - now))
            now = self.host.clock.monotonic()
            if message is None:
                continue
            message.close()
            num_messages += 1
            if num_messages > 200 + MOST_MESSAGES_PER_S * (now - began + 1):
                raise TrialFailed(
                    Outcome.CRASH, f"sent {num_messages} messages in {now - began:.1f} s"
                )
            if message.kind == kind:
                return message.body
            self._note(message.kind, message.body, started_at)
        raise self._too_late(kind, limit - began)

    def _describe_surroundings(self) -> dict[str, Any]:
        facts, jitter = self.surroundings.summary(), self.telemetry.step_jitter
        return facts if jitter is None else {**facts, "step_jitter": round(jitter, 3)}

    def _receive(self, awaited: str, timeout_s: float) -> Message | None:
        try:
            return self.candidate.receive(max(0.0, timeout_s))
        except PeerGone as gone:
            raise self._gone(awaited, gone) from gone

    def _send(self, kind: str, fds: list[int], **body: Any) -> None:
        try:
            self.candidate.send(kind, fds, **body)
        except PeerGone as gone:
            raise self._gone(kind, gone) from gone

    def _gone(self, awaited: str, gone: PeerGone) -> TrialFailed:
        """What to say of a candidate that ended before it had sent `awaited`."""
        code = self.candidate.tree.wait(LAST_WORDS_S)
        how = "" if code is None else f" (exit code {code})" if code >= 0 else f" (signal {-code})"
        return TrialFailed(Outcome.CRASH, f"{gone}{how} before {awaited!r}")

    def _note(self, kind: str, body: dict[str, Any], started_at: float | None) -> None:
        if kind == "failed":
            raise TrialFailed(Outcome.CRASH, f"train.py failed: {one_line(str(body.get('error')))}")
        if kind == "progress" and started_at is not None:
            elapsed_s = self.host.clock.monotonic() - started_at
            values = self.telemetry.note(elapsed_s, body.get("values"))
            if self.telemetry.divergence and self.host.config.judge.early_stop != "off":
                raise TrialFailed(Outcome.CRASH, self.telemetry.divergence)
            reason = self.watch(elapsed_s, values)
            if reason:
                raise TrialFailed(Outcome.STOPPED, reason)

    def _memory_limit_bytes(self) -> float:
        limit_gb = self.host.config.trial.memory_gb
        return limit_gb * 2**30 if limit_gb else 0.8 * psutil.virtual_memory().total

    def _check_usage(self) -> None:
        usage = self.candidate.tree.usage()
        used_mb: float | None = usage.memory_bytes / 2**20
        if self.host.device_type == "cuda":
            used_mb = nvml.used_memory_mb(self.host.device)
        if used_mb is not None:
            self.facts["peak_memory_mb"] = max(self.facts.get("peak_memory_mb", 0.0), used_mb)
        limit_bytes = self._memory_limit_bytes()
        if usage.memory_bytes > limit_bytes:
            used_gb, limit_gb = usage.memory_bytes / 2**30, limit_bytes / 2**30
            raise TrialFailed(
                Outcome.CRASH, f"used {used_gb:.1f} GiB of memory, {limit_gb:.1f} GiB at most"
            )
        if usage.num_processes > MOST_PROCESSES:
            raise TrialFailed(Outcome.CRASH, f"started {usage.num_processes} processes")

    def _too_late(self, kind: str, allowed_s: float) -> TrialFailed:
        what = {
            "submit": "the weights did not arrive",
            "evaluate": "evaluate_bpb was not called",
            "ready": "it was not ready to train",
        }
        return TrialFailed(
            Outcome.TIMEOUT, f"{what.get(kind, 'it did not start')} within {allowed_s:.1f} s"
        )
