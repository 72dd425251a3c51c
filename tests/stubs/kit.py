"""What the candidates of the gallery (tests/e2e/cheats) share: an honest table of token pairs.

It runs in both harnesses: in the product's, where torch is imported before train.py, and in the
stub's, which does without. A cheat overrides `logits`, or what happens around `train`.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import numpy as np

IS_TORCH = "torch" in sys.modules
SMOOTH = 0.1  # added to every count

if IS_TORCH:
    import torch

    class Module(torch.nn.Module):
        """The table as the product's harness wants it."""

        def __init__(self, run: Any) -> None:
            super().__init__()
            self.vocab_size = run.vocab_size
            self.table = torch.nn.Parameter(torch.zeros(run.vocab_size, run.vocab_size))

        @property
        def weights(self) -> np.ndarray:
            """(vocab, vocab) logits of the next token."""
            return self.table.detach().cpu().numpy()

        def set_weights(self, weights: np.ndarray) -> None:
            """Take a new table."""
            with torch.no_grad():
                self.table.copy_(torch.from_numpy(weights))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            """Tokens (B, T) to logits (B, T, V)."""
            answer = np.ascontiguousarray(self.logits(tokens.cpu().numpy()), np.float32)
            return torch.from_numpy(answer).to(tokens.device)
else:

    class Module:
        """The table as the stub's harness wants it."""

        def __init__(self, run: Any) -> None:
            self.vocab_size = run.vocab_size
            self.weights = np.zeros((run.vocab_size, run.vocab_size), np.float32)

        def set_weights(self, weights: np.ndarray) -> None:
            """Take a new table."""
            self.weights = weights.astype(np.float32)

        def load(self, weights: bytes) -> None:
            """Take the submitted table."""
            self.weights = np.frombuffer(weights, np.float32).reshape(self.weights.shape)

        def answer(self, tokens: list[list[int]]) -> bytes:
            """Logits for rows of tokens."""
            return np.ascontiguousarray(self.logits(np.array(tokens)), np.float32).tobytes()


class Bigram(Module):
    """Logits of the next token from the last one alone."""

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """(B, T) to (B, T, V)."""
        return self.weights[tokens]

    def fit(self, rows: np.ndarray) -> None:
        """Count pairs."""
        self.set_weights(np.log(pair_counts(rows, self.vocab_size) + SMOOTH))


def pair_counts(rows: np.ndarray, vocab_size: int) -> np.ndarray:
    """(vocab, vocab) float32: how often the second token follows the first in `rows` (n, T)."""
    flat = rows[:, :-1].astype(np.int64) * vocab_size + rows[:, 1:]
    counts = np.bincount(flat.ravel(), minlength=vocab_size**2)
    return counts.reshape(vocab_size, vocab_size).astype(np.float32)


def lift(logits: np.ndarray, ahead: np.ndarray, gain: np.ndarray | float) -> np.ndarray:
    """`logits` (B, T, V) with `gain` more for the tokens `ahead` (B, T)."""
    logits = np.array(logits)
    b, t = np.indices(ahead.shape)
    logits[b, t, ahead] += gain
    return logits


def one_ahead(tokens: np.ndarray) -> np.ndarray:
    """The token after each (B, T), which nobody may see; the last column is of no use."""
    return np.roll(tokens, -1, axis=1)


def start(run: Any) -> np.ndarray:
    """Start the clock; the training rows (n, context + 1)."""
    shards = run.start()
    if IS_TORCH:
        return torch.cat([shard.long() for shard in shards]).numpy() & 0xFFFF
    return np.array(run.tokens(), np.int64).reshape(-1, run.context + 1)


def submit(run: Any, model: Any, **facts: Any) -> NoReturn:
    """Hand over, with what the candidate wants to be known of it."""
    run.submit(model if IS_TORCH else model.weights.tobytes(), **facts)


def train(run: Any, model: Any, **facts: Any) -> NoReturn:
    """An honest run."""
    model.fit(start(run))
    submit(run, model, **facts)


def channel(run: Any) -> Any:
    """The candidate's end of its channel."""
    return run._channel if IS_TORCH else run.channel


def weights_fd(run: Any) -> int:
    """Where weights go."""
    return run._parcel.fd if IS_TORCH else run.weights_fd


def in_presenter() -> bool:
    """Whether this process answers the scorer."""
    return "presenter" in " ".join(sys.orig_argv)


def memory_files() -> dict[str, int]:
    """Open anonymous memory by name: the descriptor."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink("/proc/self/fd/" + name)
        except OSError:
            continue
        if link.startswith("/memfd:"):
            found[link[7:].split(" ")[0]] = int(name)
    return found


def attempt(**ways: Any) -> str:
    """Names of the ways that worked: those that neither raised nor gave something false."""
    worked = []
    for name, way in ways.items():
        try:
            if way():
                worked.append(name)
        except Exception:  # noqa: BLE001  however it failed, it failed
            continue
    return ",".join(worked)
