"""Text to rows for the GPU scripts: train a tokenizer, encode, pack, keep the result as .npy files.

Usage: python runs/gpu_rows.py CORPUS OUT [--parts N] [--vocab 8192] [--context 2048]

CORPUS holds train-*.jsonl and val.jsonl, one {"text": ...} object a line. OUT gets tokenizer.json,
rows_NN.npy (one a training part), val.npy, val_reference.npy (packed the reference's way) and
bytes.npy (true and decoded bytes of every token). What is already there is kept. It uses all cores.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from autoresearch.data.packing import pack_rows, pack_rows_reference
from autoresearch.data.tokenizer import (
    MAX_DOCUMENT_CHARS,
    MAX_TRAIN_CHARS,
    Tokenizer,
    train_tokenizer,
)

REFERENCE_SCORE_TOKENS = 40 * 524_288
BATCH_DOCUMENTS = 2_000


def read_texts(path: Path) -> list[str]:
    """The texts of a .jsonl file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def front_of(parts: list[Path]) -> Iterator[str]:
    """Texts for the tokenizer: the front of the training parts, long documents cut."""
    num_chars = 0
    for part in parts:
        for text in read_texts(part):
            text = text[:MAX_DOCUMENT_CHARS]
            num_chars += len(text)
            if num_chars > MAX_TRAIN_CHARS:
                return
            yield text


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """Token ids of every text."""
    starts = range(0, len(texts), BATCH_DOCUMENTS)
    batches = (tokenizer.encode_batch(texts[i : i + BATCH_DOCUMENTS]) for i in starts)
    return [document for batch in batches for document in batch]


def prepare(corpus: Path, out: Path, num_parts: int, vocab_size: int, context: int) -> None:
    """Make what is missing in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    parts = sorted(corpus.glob("train-*.jsonl"))[:num_parts]
    path = out / "tokenizer.json"
    if not path.exists():
        started = time.perf_counter()
        path.write_text(train_tokenizer(front_of(parts), vocab_size).text, encoding="utf-8")
        print(f"tokenizer: {time.perf_counter() - started:.0f} s", flush=True)
    tokenizer = Tokenizer.open(path)
    np.save(
        out / "bytes.npy", np.stack([tokenizer.byte_lengths(), tokenizer.decoded_byte_lengths()])
    )
    targets = {part: out / f"rows_{part.stem[-2:]}.npy" for part in parts}
    for source, target in {**targets, corpus / "val.jsonl": out / "val.npy"}.items():
        if target.exists():
            continue
        started = time.perf_counter()
        documents = encode(tokenizer, read_texts(source))
        encoded_s = time.perf_counter() - started
        rows = pack_rows(documents, context + 1, tokenizer.bos).rows
        if target.name == "val.npy":
            num_rows = REFERENCE_SCORE_TOKENS // context
            shape = (context + 1, tokenizer.bos, num_rows)
            np.save(out / "val_reference.npy", pack_rows_reference(documents, *shape))
        np.save(target, rows)
        packed_s = time.perf_counter() - started - encoded_s
        size = f"{len(rows)} rows, {rows.size / 1e6:.1f}M tokens"
        print(f"{target.name}: {size}, {encoded_s:.0f} + {packed_s:.0f} s", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", type=int, default=99)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--context", type=int, default=2048)
    given = parser.parse_args()
    prepare(given.corpus, given.out, given.parts, given.vocab, given.context)


if __name__ == "__main__":
    main()
