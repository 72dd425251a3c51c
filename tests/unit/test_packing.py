"""Packing: no token is lost or doubled, rows are full; the reference's way follows its rule."""

from __future__ import annotations

from itertools import cycle, islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.data.packing import Packed, pack_rows, pack_rows_reference
from autoresearch.data.tokenizer import Tokens

BOS = 0
LENGTHS = st.lists(st.integers(0, 60), max_size=60)


def documents_of(lengths: list[int]) -> list[Tokens]:
    """Documents of these lengths in which every token of all is different, counted from 1."""
    ends = np.cumsum(lengths, dtype=int)
    return [
        np.arange(end - length + 1, end + 1, dtype=np.uint16)
        for length, end in zip(lengths, ends, strict=True)
    ]


def pieces_of(packed: Packed) -> list[list[int]]:
    """What stands between beginnings of sequence in all rows, and the left over pieces."""
    pieces: list[list[int]] = []
    for row in packed.rows.tolist():
        for token in row:
            if token == BOS:
                pieces.append([])
            else:
                pieces[-1].append(token)
    return pieces + [piece.tolist() for piece in packed.left_over]


@given(LENGTHS, st.integers(2, 40), st.integers(1, 10))
def test_nothing_is_lost_or_doubled(lengths: list[int], row_tokens: int, buffer: int) -> None:
    """Every token is in exactly one place, in its order, behind tokens of its own document."""
    packed = pack_rows(documents_of(lengths), row_tokens, BOS, buffer)
    tokens = [token for piece in pieces_of(packed) for token in piece]
    assert sorted(tokens) == list(range(1, sum(lengths) + 1))
    owner = np.repeat(np.arange(len(lengths)), lengths).tolist()
    for piece in pieces_of(packed):
        assert piece == list(range(piece[0], piece[0] + len(piece))) if piece else True
        assert len({owner[token - 1] for token in piece}) <= 1


@given(LENGTHS, st.integers(2, 40), st.integers(1, 10))
def test_rows_are_full_and_start_with_bos(lengths: list[int], row_tokens: int, buffer: int) -> None:
    """Every row has its length and its first token; less than a row is left over."""
    packed = pack_rows(documents_of(lengths), row_tokens, BOS, buffer)
    assert packed.rows.shape[1] == row_tokens
    assert packed.rows.dtype == np.uint16
    assert all(packed.rows[:, 0] == BOS)
    assert sum(map(len, packed.left_over)) < row_tokens


@given(LENGTHS, st.integers(2, 40), st.integers(1, 10))
def test_a_row_cuts_at_most_one_document(lengths: list[int], row_tokens: int, buffer: int) -> None:
    """Documents are cut only to fill a row: there are at most as many new pieces as rows."""
    packed = pack_rows(documents_of(lengths), row_tokens, BOS, buffer)
    assert len(pieces_of(packed)) <= len(lengths) + len(packed.rows)


def test_best_fit() -> None:
    """The longest document that fits is taken first; the rest of a long one goes on later."""
    documents = documents_of([3, 9, 4, 2])  # 1-3, 4-12, 13-16, 17-18
    rows = pack_rows(documents, 8, BOS).rows.tolist()
    assert rows == [
        [0, 13, 14, 15, 16, 0, 17, 18],
        [0, 1, 2, 3, 0, 4, 5, 6],
    ]
    assert [piece.tolist() for piece in pack_rows(documents, 8, BOS).left_over] == [
        [7, 8, 9, 10, 11, 12]
    ]


def test_left_over_goes_on_into_the_next_call() -> None:
    """Packing in two calls with the left over carried loses nothing."""
    documents = documents_of([5, 30, 7, 2, 11, 3])
    first = pack_rows(documents[:3], 9, BOS)
    second = pack_rows([*first.left_over, *documents[3:]], 9, BOS)
    tokens = [token for row in [*first.rows, *second.rows] for token in row.tolist() if token]
    tokens += [token for piece in second.left_over for token in piece.tolist()]
    assert sorted(tokens) == list(range(1, 59))


def test_no_documents() -> None:
    """Nothing gives no rows."""
    assert pack_rows([], 5, BOS).rows.shape == (0, 5)


def test_row_too_short() -> None:
    """A row that has no room for text is a mistake of the caller."""
    with pytest.raises(ValueError, match="row_tokens is 1"):
        pack_rows([], 1, BOS)


def by_the_rule(
    documents: list[Tokens], row_tokens: int, num_rows: int, buffer: int, batch: int
) -> list[list[int]]:
    """The reference's rule written down as it is said, without any speed."""
    source = cycle([[BOS, *document.tolist()] for document in documents])
    waiting: list[list[int]] = []
    rows: list[list[int]] = []
    while len(rows) < num_rows:
        row: list[int] = []
        while len(row) < row_tokens:
            while len(waiting) < buffer:
                waiting += islice(source, batch)
            free = row_tokens - len(row)
            fitting = [document for document in waiting if len(document) <= free]
            chosen = max(fitting, key=len) if fitting else min(waiting, key=len)
            index = next(i for i, document in enumerate(waiting) if document is chosen)
            row += waiting.pop(index)[:free]
        rows.append(row)
    return rows


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=20),
    st.integers(2, 20),
    st.integers(0, 12),
    st.integers(1, 8),
    st.integers(1, 5),
)
def test_reference_rows_follow_the_rule(
    lengths: list[int], row_tokens: int, num_rows: int, buffer: int, batch: int
) -> None:
    """The fast version gives the rows that the rule gives, going round the documents."""
    documents = documents_of(lengths)
    rows = pack_rows_reference(documents, row_tokens, BOS, num_rows, buffer, batch)
    assert rows.tolist() == by_the_rule(documents, row_tokens, num_rows, buffer, batch)


def test_reference_needs_documents() -> None:
    """Going round nothing would never end."""
    with pytest.raises(ValueError, match="no documents"):
        pack_rows_reference([], 5, BOS, 1)
