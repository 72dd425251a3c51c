"""Trusted process that holds validation tokens and turns a presenter's logits into nats.

It lives as long as the session. For every chunk of rows it writes tokens (never targets) into a
buffer that only it can write, fills the logits buffer with NaN, asks the presenter, copies the
answer once into private memory, and computes from that copy alone: log-softmax in float32, sums in
float64. The presenter is free to scribble over the buffer afterwards. Every presentation gets
buffers that no earlier one has seen, so that no presenter can leave a note for the next. Nats a
token of the last presentations stay here, for the audit to compare with.

The holdout is opened for `hold` alone. Its scores stay here until `compare` turns them into one
bit, and are forgotten then.

Messages in: load, prepare, score, audit, hold, compare, generate. Out: ready, prepared, scored,
audited, held, compared, generated, failed with a code.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from autoresearch.referee import audit
from autoresearch.system.procs import die_with_parent, guard_this_process
from autoresearch.wire import device_memory
from autoresearch.wire.buffer import SharedBuffer
from autoresearch.wire.channel import Channel, ChannelBroken, ChannelClosed, Message

PRESENTATIONS_KEPT = 8


class ScoringFailed(Exception):
    """The presenter did not give usable logits.

    The text is one of the codes in scoring.FAILURES.
    """


class Scorer:
    """Rows, byte counts and the two buffers."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.chunk_rows: int = settings["chunk_rows"]
        self.context: int = settings["context"]
        self.vocab_size: int = settings["vocab_size"]
        self.device = torch.device(settings["device"])
        self.rows = _read_rows(settings["rows_path"], self.context)
        self.token_bytes = _byte_table(settings["token_bytes_path"])
        self.token_bytes_decoded = _byte_table(settings["token_bytes_decoded_path"])
        self.nats: OrderedDict[int, Tensor] = OrderedDict()  # run id -> (rows, context) float32
        self.held: dict[int, float] = {}  # run id -> bits per byte of the holdout
        self.logits_shape = (self.chunk_rows, self.context, self.vocab_size)
        self._host_buffers: list[SharedBuffer] = []
        self._device_fd = -1
        if self.device.type == "cuda":  # pragma: no cover - needs a GPU
            self._make_device_logits()

    def make_buffers(self) -> list[int]:
        """Fresh buffers for the next presentation; descriptors of tokens and logits, to be handed
        to the presenter.

        Device memory stays and is wiped: nobody but the scorer maps it now, its last presenter is
        dead.
        """
        self.tokens = torch.empty(0)  # lets go of the old mappings
        if self._device_fd < 0:
            self.logits = torch.empty(0)
        for buffer in self._host_buffers:
            buffer.close()
        tokens = SharedBuffer.create("tokens", self.chunk_rows * self.context * 4)
        self.tokens = torch.frombuffer(tokens.writable(), dtype=torch.int32)
        self.tokens = self.tokens.view(self.chunk_rows, self.context)
        tokens.keep_for_me()
        self._host_buffers = [tokens]
        if self._device_fd >= 0:  # pragma: no cover - needs a GPU
            self.logits.fill_(math.nan)
            self._synchronize()
            return [tokens.fd, self._device_fd]
        logits = SharedBuffer.create("logits", 4 * math.prod(self.logits_shape))
        self.logits = torch.frombuffer(logits.writable(), dtype=torch.float32).view(
            self.logits_shape
        )
        logits.fix_size()
        self._host_buffers.append(logits)
        return [tokens.fd, logits.fd]

    def _make_device_logits(self) -> None:  # pragma: no cover - needs a GPU
        size_bytes = 4 * math.prod(self.logits_shape)
        memory, self._device_fd = device_memory.create(size_bytes, self.device.index or 0)
        self.logits = device_memory.as_tensor(memory, self.logits_shape)

    def ask(self, presenter: Channel, tokens: Tensor, deadline: float) -> Tensor:
        """The presenter's logits for `tokens` (n <= chunk_rows, context), as a private copy (n,
        context, vocab).

        Raises:
            ScoringFailed: no answer in time, or another answer than `done`.
        """
        count = tokens.shape[0]
        self.tokens[:count] = tokens
        self.tokens[count:] = 0
        self.logits.fill_(math.nan)
        self._synchronize()
        try:
            presenter.send("forward")
            message = presenter.receive(max(0.0, deadline - time.monotonic()))
        except ChannelClosed as error:
            raise ScoringFailed("presenter_died") from error
        except ChannelBroken as error:
            raise ScoringFailed("presenter_broke_protocol") from error
        if message is None:
            raise ScoringFailed("scoring_timeout")
        message.close()
        if message.kind != "done":
            known = message.kind in ("wrong_shape", "failed_forward")
            raise ScoringFailed(message.kind if known else "presenter_broke_protocol")
        private = self.logits[:count].clone()
        self._synchronize()
        return private

    def nats_of(
        self, presenter: Channel, shown: Tensor, asked: Tensor, deadline: float, each: int = 0
    ) -> Tensor:
        """Nats of the targets `asked` where the tokens `shown` are seen, `each` rows a request (0:
        as many as fit); all (n, context), float32 on the host.

        Raises:
            ScoringFailed: as `ask`, or a nat that is not finite.
        """
        parts = []
        for tokens, targets in zip(
            shown.split(each or self.chunk_rows), asked.split(each or self.chunk_rows), strict=True
        ):
            targets = targets.to(self.device, torch.long)
            parts.append(_nats(self.ask(presenter, tokens, deadline), targets))  # one copy a time
        nats = torch.cat(parts).cpu()
        if not bool(torch.isfinite(nats).all()):
            raise ScoringFailed("not_finite")
        return nats

    def score(self, presenter: Channel, run_id: int, deadline: float) -> dict[str, Any]:
        """Bits per byte over all rows, each shown once, with both byte tables."""
        nats = self.nats_of(presenter, self.rows[:, :-1], self.rows[:, 1:], deadline)
        self.nats[run_id] = nats
        while len(self.nats) > PRESENTATIONS_KEPT:
            self.nats.popitem(last=False)
        targets = self.rows[:, 1:].long()
        return {
            "val_bpb": bits_per_byte(nats, self.token_bytes[targets]),
            "val_bpb_decoded": bits_per_byte(nats, self.token_bytes_decoded[targets]),
            "num_tokens": targets.numel(),
        }

    def audit(self, presenter: Channel, run_id: int, seed: int, deadline: float) -> dict[str, Any]:
        """Show decoys to a fresh presenter of the same weights and compare (audit.py)."""
        if run_id not in self.nats:
            raise ScoringFailed("unknown_run")
        decoys = audit.make_decoys(self.rows.numpy(), self.chunk_rows, seed)
        lone = torch.from_numpy(audit.pick_lone(len(self.rows), seed))
        alone = self.nats_of(presenter, self.rows[lone, :-1], self.rows[lone, 1:], deadline, each=1)
        source = torch.from_numpy(decoys.source)
        shown = torch.from_numpy(decoys.rows)[:, :-1]
        second = self.nats_of(presenter, shown, self.rows[source, 1:], deadline)
        first, nats = self.nats[run_id][source], self.nats[run_id][lone]
        pair = (nats.numpy(), alone.numpy())
        return asdict(audit.compare(first.numpy(), second.numpy(), decoys, pair))

    def hold(self, presenter: Channel, run_id: int, path: str, deadline: float) -> None:
        """Score the holdout's rows and keep the figure here."""
        rows = _read_rows(path, self.context)
        nats = self.nats_of(presenter, rows[:, :-1], rows[:, 1:], deadline)
        self.held[run_id] = bits_per_byte(nats, self.token_bytes[rows[:, 1:].long()])

    def compare(self, champion: list[int], reference: list[int], least_gain_bpb: float) -> bool:
        """Whether the champion's runs scored lower on the holdout by so much, on average.

        All scores are forgotten, so that nobody can ask twice.

        Raises:
            ScoringFailed: a run was not shown the holdout by this process.
        """
        held, self.held = self.held, {}
        if not held.keys() >= {*champion, *reference}:
            raise ScoringFailed("unknown_run")
        means = [sum(held[n] for n in arm) / len(arm) for arm in (reference, champion)]
        gain_bpb = means[0] - means[1]
        return gain_bpb > 0 and gain_bpb >= least_gain_bpb

    def generate(
        self,
        presenter: Channel,
        prompt: list[int],
        count: int,
        temperature: float,
        seed: int,
        deadline: float,
    ) -> list[int]:
        """`count` tokens after `prompt`, drawn from the presenter's logits.

        Special tokens are never drawn.
        """
        generator = torch.Generator().manual_seed(seed)
        tokens = list(prompt)
        for _ in range(count):
            seen = tokens[-self.context :]
            row = torch.zeros(1, self.context, dtype=torch.int32)
            row[0, : len(seen)] = torch.tensor(seen, dtype=torch.int32)
            logits = self.ask(presenter, row, deadline)[0, len(seen) - 1].float().cpu()
            logits[self.token_bytes == 0] = -math.inf
            if temperature <= 0:
                tokens.append(int(logits.argmax()))
            else:
                weights = torch.softmax(logits / temperature, dim=-1)
                tokens.append(int(torch.multinomial(weights, 1, generator=generator)))
        return tokens[len(prompt) :]

    def release(self) -> None:
        """Give back memory of the device that only answering needed: training may want it."""
        if self.device.type == "cuda":  # pragma: no cover - needs a GPU
            torch.cuda.empty_cache()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy a token in float32; a row at a time, for memory.

    torch takes the largest logit off first, and the logarithm of the sum after that: at an offset
    of 1e9 float32 has steps of 64, which swallow the whole entropy in any other order.
    """
    rows = zip(logits, targets, strict=True)
    return torch.stack([functional.cross_entropy(*row, reduction="none") for row in rows])


def bits_per_byte(nats: Tensor, num_bytes: Tensor) -> float:
    """Nats summed in float64 over targets that have bytes, over ln 2 and those bytes."""
    counted = num_bytes > 0
    total_nats: float = nats.double()[counted].sum().item()
    return total_nats / math.log(2) / int(num_bytes[counted].sum())


def _read_rows(path: str, context: int) -> Tensor:
    """The rows of a file, (n, context + 1) int32."""
    rows = np.fromfile(path, dtype="<u2").reshape(-1, context + 1)
    return torch.from_numpy(rows.astype(np.int32))


def _byte_table(path: str) -> Tensor:
    return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.int64))


def serve(channel: Channel) -> None:
    """Answer the referee until it goes."""
    message = channel.receive()
    assert message is not None, "without a timeout there is always a message"
    torch.set_num_threads(message.body["threads"])
    scorer = Scorer(message.body)
    channel.send("ready", num_rows=len(scorer.rows))
    while True:
        request = channel.receive()
        assert request is not None, "without a timeout there is always a message"
        if request.kind == "prepare":
            channel.send("prepared", scorer.make_buffers())
            continue
        try:
            kind, body = _answer(scorer, request)
        except ScoringFailed as failure:
            kind, body = "failed", {"code": str(failure)}
        channel.send(kind, **body)


def _answer(scorer: Scorer, request: Message) -> tuple[str, dict[str, Any]]:
    body = request.body
    if request.kind == "compare":
        arms = (body["champion"], body["reference"])
        return "compared", {"agrees": scorer.compare(*arms, body["least_gain_bpb"])}
    presenter = Channel.from_fd(request.fds.pop(), most_fds=0)
    deadline = time.monotonic() + body["limit_s"]
    try:
        if request.kind == "score":
            return "scored", scorer.score(presenter, body["run_id"], deadline)
        if request.kind == "audit":
            return "audited", scorer.audit(presenter, body["run_id"], body["seed"], deadline)
        if request.kind == "hold":
            scorer.hold(presenter, body["run_id"], body["path"], deadline)
            return "held", {}
        tokens = scorer.generate(
            presenter, body["prompt"], body["count"], body["temperature"], body["seed"], deadline
        )
        return "generated", {"tokens": tokens}
    finally:
        presenter.close()
        scorer.release()


def main() -> None:
    """Serve on the descriptor named by the command line."""
    die_with_parent()
    guard_this_process()
    with suppress(ChannelClosed):
        serve(Channel.from_fd(int(sys.argv[1])))


if __name__ == "__main__":
    main()
    os._exit(0)  # taking torch apart in order would hold up the session's end for a second
