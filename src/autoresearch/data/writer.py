"""The files of one dataset: tokenizer, byte tables, scoring rows, training rows, manifest.

Used once by `prepare`, in a folder that is not yet under its final name. Text is encoded batch
after batch, over all cores, and packed shard after shard, so that memory is bounded whatever the
size of the corpus.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoresearch.data.document import Corpus, Report, digest
from autoresearch.data.packing import pack_rows
from autoresearch.data.tokenizer import Tokenizer, Tokens
from autoresearch.system.files import sha256_file, write_atomic
from autoresearch.values.config import DataSettings
from autoresearch.values.errors import DataError

FORMAT = 1  # goes into the key: raise it when the same settings would give other bytes
BATCH_CHARS = 2_000_000  # encoded at once, over all cores; about 90 MB of memory
SHARD_TOKENS = 64_000_000  # packed together: 128 MB a file
# Scoring rows are drawn from this many times their tokens, and from MIN_POOL_TOKENS at least.
POOL_FACTOR = 4
MIN_POOL_TOKENS = 2_000_000
LEAST_SCORE_ROWS = 64  # an audit of fewer may see nothing (docs/threat-model.md)
DIGESTED = ("format", "vocab_size", "context", "bos", "splits", "files", "holdout")
MAX_SEEN = 2_000_000  # hashes of training documents remembered, to leave out copies: 180 MB


class DatasetWriter:
    """Writes the files of one dataset; `write` is called once."""

    def __init__(
        self, settings: DataSettings, tokenizer: Tokenizer, folder: Path, holdout_path: Path
    ) -> None:
        self.settings = settings
        self.tokenizer = tokenizer
        self.folder = folder
        self.holdout_path = holdout_path
        self.byte_lengths = tokenizer.byte_lengths()

    def write(self, corpus: Corpus, key: str, report: Report) -> None:
        """Everything, the manifest last."""
        write_atomic(self.folder / "tokenizer.json", self.tokenizer.text)
        np.save(self.folder / "token_bytes.npy", self.byte_lengths)
        np.save(self.folder / "token_bytes_decoded.npy", self.tokenizer.decoded_byte_lengths())
        report("scoring rows", 0, 2)
        splits = {
            "validation": self._write_scored(
                corpus.validation,
                self.settings.score_tokens,
                self.folder / "validation.bin",
                "score_tokens",
                least_rows=LEAST_SCORE_ROWS,
            )
        }
        report("scoring rows", 1, 2)
        splits["holdout"] = self._write_scored(
            corpus.holdout, self.settings.holdout_tokens, self.holdout_path, "holdout_tokens"
        )
        self.holdout_path.chmod(0o600)
        report("scoring rows", 2, 2)
        splits["train"] = self._write_train(corpus, report)
        manifest = {
            "format": FORMAT,
            "key": key,
            "settings": asdict(self.settings),
            "vocab_size": self.tokenizer.vocab_size,
            "context": self.settings.context,
            "bos": self.tokenizer.bos,
            "splits": splits,
            "files": {path.name: _entry(path) for path in sorted(self.folder.iterdir())},
            "holdout": _entry(self.holdout_path),
            "corpus": {
                "name": corpus.name,
                **corpus.origin,
                "sources": [asdict(source) for source in corpus.sources],
            },
        }
        manifest["digest"] = digest_of(manifest)
        write_atomic(
            self.folder / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        )

    def _write_scored(
        self,
        documents: Sequence[str],
        wanted_tokens: int,
        path: Path,
        setting: str,
        least_rows: int = 1,
    ) -> dict[str, Any]:
        """Pack scoring documents and write a fixed choice of their rows."""
        context = self.settings.context
        wanted_rows = wanted_tokens // context
        pool_tokens = max(POOL_FACTOR * wanted_tokens, MIN_POOL_TOKENS)
        pool: list[Tokens] = []
        num_chars = 0
        for batch in _batches(documents):
            pool += self.tokenizer.encode_batch(batch)
            num_chars += sum(map(len, batch))
            if sum(map(len, pool)) >= pool_tokens:
                break
        packed = pack_rows(pool, context + 1, self.tokenizer.bos).rows
        rows = packed[np.sort(row_order(len(packed))[:wanted_rows])]
        if len(rows) < least_rows:
            raise DataError(
                f"the text for data.{setting} has {sum(map(len, pool))} tokens, enough for "
                f"{len(rows)} rows of data.context = {context}, expected at least {least_rows}; "
                "lower data.context or add text, then run `autoresearch prepare` again"
            )
        self._write_rows(rows[row_order(len(rows))], path)
        return {
            "documents": len(pool),
            "chars": num_chars,
            "bytes": sum(self._count_bytes(tokens) for tokens in pool),
            "tokens": sum(map(len, pool)),
            "wanted_rows": wanted_rows,
            "rows": len(rows),
            "is_short": len(rows) < wanted_rows,  # the corpus has no more: all its rows are scored
            "scored_tokens": len(rows) * context,
            "scored_bytes": self._count_bytes(rows[:, 1:]),
        }

    def _write_train(self, corpus: Corpus, report: Report) -> dict[str, Any]:
        """Encode and pack the training text; what one shard leaves over goes into the next."""
        scored = {digest(text) for text in (*corpus.validation, *corpus.holdout)}
        seen: set[int] = set()
        counts = dict.fromkeys(
            ("documents", "copies_left_out", "chars", "bytes", "tokens", "rows"), 0
        )
        waiting: list[Tokens] = []
        num_shards = num_waiting = 0

        def texts() -> Iterator[str]:
            for text in stream_train(corpus, "tokenize", report):
                key = digest(text)
                if key in scored or key in seen:
                    counts["copies_left_out"] += 1
                    continue
                if len(seen) == MAX_SEEN:
                    seen.clear()
                seen.add(key)
                counts["documents"] += 1
                counts["chars"] += len(text)
                yield text

        for batch in _batches(texts()):
            for tokens in self.tokenizer.encode_batch(batch):
                waiting.append(tokens)
                num_waiting += len(tokens)
                counts["tokens"] += len(tokens)
                counts["bytes"] += self._count_bytes(tokens)
            if num_waiting >= SHARD_TOKENS:
                waiting = self._write_shard(waiting, num_shards, counts)
                num_waiting = sum(map(len, waiting))
                num_shards += 1
        if waiting:
            waiting = self._write_shard(waiting, num_shards, counts)
        if not counts["rows"]:
            raise DataError(
                f"the training text has {counts['tokens']} tokens, not enough for one row of "
                f"data.context = {self.settings.context}; lower data.context or add text"
            )
        return {**counts, "left_over_tokens": sum(map(len, waiting))}

    def _write_shard(
        self, documents: list[Tokens], number: int, counts: dict[str, int]
    ) -> list[Tokens]:
        packed = pack_rows(documents, self.settings.context + 1, self.tokenizer.bos)
        if len(packed.rows):
            self._write_rows(
                packed.rows[row_order(len(packed.rows))], self.folder / f"train_{number:05d}.bin"
            )
        counts["rows"] += len(packed.rows)
        return list(packed.left_over)

    def _count_bytes(self, tokens: Tokens) -> int:
        return int(self.byte_lengths[tokens].sum(dtype=np.int64))

    def _write_rows(self, rows: Tokens, path: Path) -> None:
        with path.open("wb") as file:
            np.ascontiguousarray(rows, dtype="<u2").tofile(file)
            os.fsync(file.fileno())


def stream_train(
    corpus: Corpus,
    stage: str,
    report: Report,
    max_chars: int = sys.maxsize,
    max_document_chars: int = sys.maxsize,
) -> Iterator[str]:
    """The training documents, shard after shard, cut at a length, until they hold `max_chars`.

    `report` hears of a thousand steps at most, and of the end.
    """
    total = min(max_chars, sum(shard.size_bytes for shard in corpus.train))
    done = reported = 0
    report(stage, 0, total)
    for text in (text for shard in corpus.train for text in shard.read()):
        part = text[: min(max_document_chars, max_chars - done)]
        yield part
        done += len(part)
        if min(done, total) - reported > total // 1000:
            reported = min(done, total)
            report(stage, reported, total)
        if done >= max_chars:
            break
    report(stage, total, total)


def row_order(num_rows: int) -> npt.NDArray[np.intp]:
    """A shuffled order of rows, the same for ever: by a mix of their numbers (splitmix64)."""
    mixed = np.arange(1, num_rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(mixed ^ (mixed >> np.uint64(31)), kind="stable")


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    num_chars = 0
    for text in texts:
        batch.append(text)
        num_chars += len(text)
        if num_chars >= BATCH_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def digest_of(manifest: dict[str, Any]) -> str:
    """Hash of all of a manifest that says what the data is, not where it came from."""
    kept = {name: manifest[name] for name in DIGESTED}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
