"""What a corpus is made of: documents (plain str), shards that stream them, and the choice of what
is scored.

A document belongs to exactly one of three splits. Validation and holdout are chosen by a hash,
never by position or by what happens to be on disk, so that the same text gives the same splits on
every machine. An exact copy of a scoring document is left out of training (by the consumer, with
`digest`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

# (stage, done, total): for a progress bar; done never goes back within a stage.
Report = Callable[[str, int, int], None]

SCORE_FRAC = (
    0.05  # of the documents, for validation and for holdout each, where a corpus does not say which
)
MIN_POOL_CHARS = (
    20_000_000  # text kept for scoring where there is plenty; rows are drawn from all of it
)
POOL_CHARS_PER_TOKEN = (
    10  # twice what is needed: a token of the usual vocabularies has 3 to 5 characters
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file that text came from; `sha256` is empty where nobody published it."""

    name: str
    size_bytes: int
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A part of the training text. `read` starts over at every call; the size is a guess."""

    name: str
    size_bytes: int
    read: Callable[[], Iterator[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Text in three splits, and where it came from (`origin`: JSON values for the manifest)."""

    name: str
    train: Sequence[Shard]
    validation: Sequence[str]
    holdout: Sequence[str]
    sources: Sequence[Source] = ()
    origin: dict[str, Any] = field(default_factory=dict)


def no_report(stage: str, done: int, total: int) -> None:
    """The report for callers that show nothing."""


def clean(text: str) -> str:
    """`text` without lone surrogates, which JSON can carry and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def digest(text: str) -> int:
    """64 bits of a hash of the text: equal for copies, and as good as random otherwise."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def pool_chars(wanted_tokens: int) -> int:
    """How many characters of scoring text to keep for `wanted_tokens`."""
    return max(MIN_POOL_CHARS, POOL_CHARS_PER_TOKEN * wanted_tokens)


def take_chars(documents: Iterable[str], limit_chars: int) -> list[str]:
    """Documents from the front until they hold `limit_chars`; all of them where they are fewer."""
    taken: list[str] = []
    num_chars = 0
    for document in documents:
        if num_chars >= limit_chars:
            break
        taken.append(document)
        num_chars += len(document)
    return taken


def score_thresholds(
    digests: Iterable[int], validation_frac: float, holdout_frac: float
) -> tuple[int, int]:
    """Two bounds (a, b): digests up to a are validation, above a and up to b holdout, the rest
    training.

    Bounds are ranks, so that small corpora get at least one document in each split; a fraction of 0
    gives none.
    """
    ordered = sorted(set(digests))
    num_validation = max(1, round(validation_frac * len(ordered))) if validation_frac else 0
    num_holdout = max(1, round(holdout_frac * len(ordered))) if holdout_frac else 0
    bounds = [-1, *ordered]
    validation_bound = bounds[min(num_validation, len(ordered))]
    return validation_bound, bounds[min(num_validation + num_holdout, len(ordered))]
