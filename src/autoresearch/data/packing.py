"""Documents to rows: best fit, every row starts with the beginning-of-sequence token, no padding,
nothing dropped.

A row is filled with the longest waiting piece that still fits, again and again. When none fits, the
longest piece is cut: its front fills the row, and its rest waits, behind a new
beginning-of-sequence token, for a later row. Cutting the longest keeps long documents from clogging
the buffer and pieces long on average. Only tokens of the very last, incomplete row are left over;
they are returned, so that a caller with more documents can go on with them.

`pack_rows_reference` is the reference implementation's way, which drops the rest of what it cuts.
It exists to compare scores with that implementation on the same rows, and for nothing else.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoresearch.data.tokenizer import Tokens

BUFFER_DOCUMENTS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Full rows (N, row_tokens), and what did not fill another one, as documents without `bos`."""

    rows: Tokens
    left_over: tuple[Tokens, ...]


def pack_rows(
    documents: Sequence[Tokens], row_tokens: int, bos: int, buffer_documents: int = BUFFER_DOCUMENTS
) -> Packed:
    """Pack `documents` (without `bos`) into rows; at most `buffer_documents` wait at once."""
    if row_tokens < 2:
        raise ValueError(f"row_tokens is {row_tokens}, a row needs at least 2")
    # Each row holds at most one cut, so splitting adds at most one token a row.
    capacity = sum(len(document) + 1 for document in documents) // (row_tokens - 1) + 1
    rows = np.empty((capacity, row_tokens), dtype=np.uint16)
    # Waiting pieces by length with their first token: (length, -arrival, document, start). Of
    # equals the oldest is last.
    waiting: list[tuple[int, int, int, int]] = []
    num_rows = arrivals = 0
    placed: list[tuple[int, int, int]] = []  # (document, start, end) in the row in hand
    position = 0
    while True:
        while len(waiting) < buffer_documents and arrivals < len(documents):
            insort(waiting, (len(documents[arrivals]) + 1, -arrivals, arrivals, 0))
            arrivals += 1
        if not waiting:
            break
        free = row_tokens - position
        fitting = bisect_left(waiting, (free + 1,))
        length, order, document, start = waiting.pop(fitting - 1 if fitting else -1)
        taken = min(length, free)
        end = start + taken - 1
        rows[num_rows, position] = bos
        rows[num_rows, position + 1 : position + taken] = documents[document][start:end]
        placed.append((document, start, end))
        if taken < length:
            insort(waiting, (length - taken + 1, order, document, end))
        position += taken
        if position == row_tokens:
            num_rows, position = num_rows + 1, 0
            placed.clear()
    left_over = tuple(
        documents[document][start:end] for document, start, end in placed if end > start
    )
    return Packed(rows=rows[:num_rows], left_over=left_over)


def pack_rows_reference(
    documents: Sequence[Tokens],
    row_tokens: int,
    bos: int,
    num_rows: int,
    buffer_documents: int = BUFFER_DOCUMENTS,
    batch_documents: int = 128,
) -> Tokens:
    """`num_rows` rows the reference's way, going round the documents as often as it takes.

    The buffer gets `batch_documents` more whenever it holds fewer than `buffer_documents`. The
    longest document that fits is taken out; when none fits, the shortest is cut to fill the row and
    its rest is dropped.
    """
    rows = np.empty((num_rows, row_tokens), dtype=np.uint16)
    if not documents:
        raise ValueError("no documents to go round")
    # (length with `bos`, -arrival, document); of equals the oldest is last.
    waiting: list[tuple[int, int, int]] = []
    arrivals = itertools.cycle(range(len(documents)))
    order = 0
    for row in rows:
        position = 0
        while position < row_tokens:
            while len(waiting) < buffer_documents:
                for document in itertools.islice(arrivals, batch_documents):
                    insort(waiting, (len(documents[document]) + 1, -order, document))
                    order += 1
            free = row_tokens - position
            fitting = bisect_left(waiting, (free + 1,)) or bisect_left(
                waiting, (waiting[0][0] + 1,)
            )
            length, _, document = waiting.pop(fitting - 1)
            taken = min(length, free)
            row[position] = bos
            row[position + 1 : position + taken] = documents[document][: taken - 1]
            position += taken
    return rows
