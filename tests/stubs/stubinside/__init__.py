"""A stand-in for autoresearch.inside without torch: starts in a tenth of a second.

It speaks the same messages. Its train.py files train a table of token frequencies: `main(run)` gets
`StubRun`, `build_model(run)` gives something with `load(weights)` and `answer(tokens) -> bytes`,
float32 logits of every position and token.
"""

from __future__ import annotations

import array
import ctypes
import importlib.util
import math
import mmap
import os
import sys
import time
from collections import Counter
from types import ModuleType
from typing import Any, NoReturn

from autoresearch.wire.channel import Channel, ChannelClosed


def die_with_parent() -> None:
    """As system.procs does it, without the packages that it imports: half of a stub's start."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)


class StubRun:
    """What a stub's train.py knows of its run."""

    def __init__(self, channel: Channel, settings: dict[str, Any], weights_fd: int = -1) -> None:
        self.channel = channel
        self.weights_fd = weights_fd
        self.shard_fds: list[int] = []
        self.vocab_size: int = settings["vocab_size"]
        self.context: int = settings["context"]
        self.budget_s: float = settings["budget_s"]
        self.seed: int = settings["seed"]
        self.started_at = 0.0

    def start(self) -> None:
        """Say `ready`, wait for the clock and the training tokens."""
        self.channel.send("ready")
        message = self.channel.receive()
        self.started_at = time.monotonic()
        self.budget_s = message.body["budget_s"]
        self.shard_fds = message.fds

    def tokens(self) -> array.array:
        """All training tokens."""
        tokens = array.array("H")
        for fd in self.shard_fds:
            with mmap.mmap(fd, os.fstat(fd).st_size, prot=mmap.PROT_READ) as view:
                tokens.frombytes(view[:])
        return tokens

    def report(self, **values: Any) -> None:
        """Telemetry."""
        self.channel.send("progress", values=values)

    def write(self, weights: bytes) -> None:
        """Put bytes where the referee looks for the weights."""
        os.pwrite(self.weights_fd, weights, 0)
        os.ftruncate(self.weights_fd, len(weights))

    def submit(self, weights: bytes, **facts: Any) -> NoReturn:
        """Hand over the weights and wait to be killed."""
        self.write(weights)
        self.channel.send("submit", size_bytes=len(weights), facts=facts)
        while True:
            try:
                self.channel.receive()
            except ChannelClosed:
                os._exit(0)


class Unigram:
    """Log frequencies of tokens, the same at every position."""

    def __init__(self, run: StubRun) -> None:
        self.vocab_size = run.vocab_size
        self.weights = bytes(4 * run.vocab_size)

    @staticmethod
    def train(run: StubRun) -> bytes:
        """Count, smoothed by a seed's worth, so that seeds differ a little as they do in life."""
        counts = Counter(run.tokens())
        smooth = 0.5 + (run.seed % 97) / 97
        table = (math.log(counts[token] + smooth) for token in range(run.vocab_size))
        return array.array("f", table).tobytes()

    def load(self, weights: bytes) -> None:
        """Take the submitted weights."""
        if len(weights) != 4 * self.vocab_size:
            raise ValueError("weights of another size")
        self.weights = weights

    def answer(self, tokens: list[list[int]]) -> bytes:
        """Logits for rows of tokens."""
        return self.weights * sum(map(len, tokens))


def load_train(path: str) -> ModuleType:
    """Import `path` as the module `train`."""
    spec = importlib.util.spec_from_file_location("train", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train"] = module
    spec.loader.exec_module(module)
    return module
