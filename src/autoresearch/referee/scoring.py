"""The resident scorer, and presenters for it to question.

A presenter is started in a sandbox of its own, told only train.py, weights and buffers, and then
talks to the scorer alone: its end of the channel is handed over. The scorer's answer is the only
thing that comes back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from autoresearch.referee.host import Host, RunSpec, Seat
from autoresearch.referee.peer import LAST_WORDS_S, Peer, PeerGone, open_scorer
from autoresearch.values.errors import AutoresearchError, TrialFailed
from autoresearch.values.records import Measurement, Outcome
from autoresearch.wire.buffer import SharedBuffer, frozen_copy
from autoresearch.wire.channel import Message

LOAD_LIMIT_S = 120.0  # for a scorer or a presenter to import and load
UNKNOWN_LIMIT_S = 600.0  # for one scoring, while no run of the baseline says what that takes
LIMIT_FACTOR, LEAST_LIMIT_S, LEAST_LIMIT_FRAC = 3.0, 10.0, 0.1
FAILURES = {  # every code that the untrusted side or the scorer may give, in plain words
    "build": "build_model failed in the fresh process that scores",
    "weights": "the submitted weights do not fit the model that build_model makes",
    "wrong_shape": "the model did not give logits of shape (rows, context, vocabulary)",
    "failed_forward": "the model failed on validation tokens",
    "not_finite": "logits were NaN or infinite, or not all were written",
    "presenter_died": "the process that answers the scorer died",
    "presenter_broke_protocol": "the process that answers the scorer broke the protocol",
}


class Scoring:
    """One scorer process for the life of a session; started again when it dies."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.limit_s = UNKNOWN_LIMIT_S  # whoever runs what may be hostile calls `limit_by` first
        self._scorer: Peer | None = None
        self._is_loaded = False

    def limit_by(self, baseline_runs: Iterable[Measurement]) -> None:
        """Allow one scoring three times what the baseline took, and 10 s or a tenth of the budget
        at least: a presenter computes, and weights may hold tokens to go on training with.
        """
        times = [run.scoring_s for run in baseline_runs if run.is_scored]
        if times:
            least_s = max(LEAST_LIMIT_S, LEAST_LIMIT_FRAC * self.host.config.trial.budget_s)
            self.limit_s = max(least_s, LIMIT_FACTOR * max(times))

    def open(self) -> None:
        """Start the scorer; it imports and loads while others work."""
        if self._scorer is None:
            self._scorer = open_scorer(self.host.env)
            with contextlib.suppress(PeerGone):  # `_ready` says what became of it
                self._scorer.send("load", **self._settings())

    def close(self) -> None:
        """End the scorer."""
        if self._scorer is not None:
            self._scorer.finish()
        self._scorer, self._is_loaded = None, False

    def ask(self, kind: str, spec: RunSpec, weights: SharedBuffer, **body: Any) -> dict[str, Any]:
        """Put one question about `weights` to the scorer, with a presenter started for it.

        Raises:
            TrialFailed: as `present`.
        """
        seat = self.host.take("presenter", spec)
        try:
            return self.present(seat, kind, spec, weights, **body)
        finally:
            seat.end()

    def present(
        self, seat: Seat, kind: str, spec: RunSpec, weights: SharedBuffer, **body: Any
    ) -> dict[str, Any]:
        """Load `weights` into a waiting presenter, hand its channel to the scorer, return the
        scorer's answer.

        Raises:
            TrialFailed: the presenter failed (crash, timeout) or the scorer died (disturbed).
        """

        def load(buffers: Message) -> None:
            _expect(seat.peer, "hello", LOAD_LIMIT_S)
            fds = [weights.fd, *buffers.fds]
            seat.peer.send("load", fds, **self.host.settings(spec, seat))

        return self._question(seat.peer, load, kind, **body)

    def score_script(self, candidate: Peer, spec: RunSpec) -> dict[str, Any]:
        """Let a script that called evaluate_bpb answer the scorer from its own process.

        Raises:
            TrialFailed: as `present`.
        """

        def load(buffers: Message) -> None:
            candidate.send("present", buffers.fds)

        return self._question(candidate, load, "score", run_id=spec.run_id)

    def _question(
        self, presenter: Peer, load: Callable[[Message], None], kind: str, **body: Any
    ) -> dict[str, Any]:
        """Give a presenter its buffers, hand its channel to the scorer, return the answer."""
        self._ready()
        buffers = self._ask_scorer("prepare", [], LOAD_LIMIT_S)
        try:
            load(buffers)
            began = self.host.clock.monotonic()
            _expect(presenter, "ready", min(LOAD_LIMIT_S, self.limit_s))
        except PeerGone as gone:
            raise TrialFailed(Outcome.CRASH, FAILURES["presenter_died"]) from gone
        finally:
            buffers.close()
        fds = [presenter.channel.fileno()]
        # One limit for both, or a model could go on training while it loads.
        left_s = max(0.0, self.limit_s - (self.host.clock.monotonic() - began))
        message = self._ask_scorer(kind, fds, left_s + LOAD_LIMIT_S, limit_s=left_s, **body)
        if message.kind == "failed":
            raise self._failure(str(message.body["code"]))
        return message.body

    def compare_held(self, arms: dict[str, list[int]], least_gain_bpb: float) -> bool:
        """Whether runs that were shown the holdout gain so much there; the scorer then forgets.

        Raises:
            TrialFailed: the scorer died, or never saw one of them.
        """
        self._ready()
        message = self._ask_scorer(
            "compare", [], LOAD_LIMIT_S, **arms, least_gain_bpb=least_gain_bpb
        )
        if message.kind == "failed":
            raise self._failure(str(message.body["code"]))
        return bool(message.body["agrees"])

    def _ask_scorer(self, kind: str, fds: list[int], patience_s: float, **body: Any) -> Message:
        """One question and its answer.

        Raises:
            TrialFailed: the scorer died or does not answer; it is ended, the next `open` starts
            another.
        """
        assert self._scorer is not None, "_ready() starts it"
        try:
            self._scorer.send(kind, fds, **body)
            message = self._scorer.receive(patience_s)
        except PeerGone as gone:
            self.close()
            raise TrialFailed(Outcome.DISTURBED, f"{gone} while it scored") from gone
        if message is None:
            self._scorer.end()  # it hangs, and would not leave by itself
            self.close()
            raise TrialFailed(Outcome.DISTURBED, "the scorer did not answer")
        return message

    def _failure(self, code: str) -> TrialFailed:
        if code == "scoring_timeout":
            return TrialFailed(Outcome.TIMEOUT, f"scoring took longer than {self.limit_s:.0f} s")
        if code == "unknown_run":
            return TrialFailed(
                Outcome.DISTURBED, "the scorer that made the first presentation is gone"
            )
        return TrialFailed(Outcome.CRASH, FAILURES.get(code, "the presentation failed"))

    def _settings(self) -> dict[str, Any]:
        dataset = self.host.dataset
        return {
            "rows_path": str(dataset.validation_path),
            "token_bytes_path": str(dataset.token_bytes_path),
            "token_bytes_decoded_path": str(dataset.token_bytes_decoded_path),
            "chunk_rows": self.host.config.trial.score_rows_per_chunk,
            "context": dataset.context,
            "vocab_size": dataset.vocab_size,
            "device": self.host.device if self.host.device_type == "cuda" else "cpu",
            "threads": self.host.threads,
        }

    def _ready(self) -> None:
        """Start the scorer where none runs, and wait until it is loaded.

        Raises:
            AutoresearchError: it does not start; its output is in the message.
            TrialFailed: it was killed meanwhile (disturbed); the next `open` starts another.
        """
        self.open()
        assert self._scorer is not None, "open() starts it"
        if not self._is_loaded:
            try:
                message = self._scorer.receive(LOAD_LIMIT_S)
            except PeerGone as gone:
                said = self._scorer.tree.output.text()[-2000:]
                code = self._scorer.tree.wait(LAST_WORDS_S)
                self.close()
                if code is not None and code < 0:
                    reason = f"the scorer was killed while it loaded (signal {-code})"
                    raise TrialFailed(Outcome.DISTURBED, reason) from gone
                raise AutoresearchError(f"{gone} while it loaded; it said:\n{said}") from gone
            if message is None or message.kind != "ready":
                self.close()
                raise AutoresearchError(f"the scorer was not ready after {LOAD_LIMIT_S:.0f} s")
            self._is_loaded = True


def _expect(presenter: Peer, kind: str, limit_s: float) -> None:
    """Wait for `kind`.

    Raises:
        PeerGone: the presenter ended.
        TrialFailed: it said something else, or nothing.
    """
    message = presenter.receive(limit_s)
    if message is None:
        raise TrialFailed(
            Outcome.TIMEOUT, f"the model was not loaded for scoring within {limit_s:.0f} s"
        )
    message.close()
    if message.kind != kind:
        code = str(message.body.get("code"))
        raise TrialFailed(Outcome.CRASH, FAILURES.get(code, FAILURES["presenter_broke_protocol"]))


def weights_from(path: Path) -> SharedBuffer:
    """A weights file, frozen in memory.

    Raises:
        OSError: it cannot be read.
    """
    return frozen_copy(path, "weights")
