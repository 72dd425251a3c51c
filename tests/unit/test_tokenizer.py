"""The tokenizer: bytes add up for any text, special tokens come from no text, training repeats."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.data.tokenizer import NUM_SPECIAL, SPECIAL_TOKENS, Tokenizer, train_tokenizer
from autoresearch.values.errors import DataError, UserError

WORDS = "the quick brown fox's 1234 jumps over 56 lazy dogs; naïve café 東京 😀 and"
TEXTS = [f"{WORDS} {n}\n\n    return x_{n}  # note\r\n" for n in range(50)]


@cache
def small() -> Tokenizer:
    """A tokenizer with some merges, among them parts of characters."""
    return train_tokenizer(TEXTS, 340)


@given(st.text())
def test_bytes_add_up_and_text_comes_back(text: str) -> None:
    """For any text the byte lengths of its tokens sum to its UTF-8 bytes, and decoding is exact."""
    tokens = small().encode(text)
    assert int(small().byte_lengths()[tokens].sum()) == len(text.encode())
    assert small().decode(tokens) == text


@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, "<|", "bos", "|>", " ", "x"])).map("".join))
def test_no_text_makes_a_special_token(text: str) -> None:
    """Text that spells a special token is encoded as its characters."""
    tokens = small().encode(text)
    assert all(tokens < small().bos)
    assert int(small().byte_lengths()[tokens].sum()) == len(text.encode())


def test_batch_equals_one_by_one() -> None:
    """Encoding in parallel changes nothing."""
    for text, tokens in zip(TEXTS, small().encode_batch(TEXTS), strict=True):
        assert tokens.tolist() == small().encode(text).tolist()


def test_special_tokens_are_last_and_weigh_nothing() -> None:
    """The first special token is the beginning of a sequence; none has bytes in either table."""
    assert small().vocab_size == 340
    assert small().bos == 340 - NUM_SPECIAL
    assert not small().byte_lengths()[-NUM_SPECIAL:].any()
    assert not small().decoded_byte_lengths()[-NUM_SPECIAL:].any()
    assert small().byte_lengths()[:-NUM_SPECIAL].all()


def test_decoded_table_is_what_decoding_alone_gives() -> None:
    """The comparison table is each token decoded alone by the library, parts replaced."""
    backend = small()._backend
    decoded = small().decoded_byte_lengths()
    for token in range(small().bos):
        assert decoded[token] == len(backend.decode([token]).encode())
    assert (decoded != small().byte_lengths()).sum() >= 128  # all single bytes above 127


def test_every_byte_is_a_token() -> None:
    """Nothing can be unknown."""
    single = {raw for raw in small().token_bytes if len(raw) == 1}
    assert single == {bytes([n]) for n in range(256)}


def test_digits_come_in_pairs_at_most() -> None:
    """No token has more than two digits, however often a number was seen."""
    tokenizer = train_tokenizer(["2024 2025 2026 " * 200], 264)
    assert max(len(re.findall(rb"\d", raw)) for raw in tokenizer.token_bytes) == 2


def test_training_repeats() -> None:
    """The same texts give the same tokenizer, byte for byte."""
    assert train_tokenizer(iter(TEXTS), 340).sha256 == small().sha256


@pytest.mark.parametrize("vocab_size", [259, 32_769])
def test_impossible_vocabulary(vocab_size: int) -> None:
    """A vocabulary out of range is refused with the range."""
    with pytest.raises(UserError, match=rf"vocab_size is {vocab_size}, expected 260 to 32768"):
        train_tokenizer(TEXTS, vocab_size)


def test_smallest_vocabulary_works() -> None:
    """Bytes and special tokens alone are a tokenizer."""
    assert train_tokenizer(TEXTS, 260).encode("abc").size == 3


def test_text_too_poor() -> None:
    """Text that cannot fill the vocabulary is refused, with what it can fill."""
    with pytest.raises(UserError, match=r"gives only 26\d different tokens, .* is 300; lower it"):
        train_tokenizer(["ab ab ab"], 300)


def test_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    """A tokenizer read from its file encodes as before."""
    path = tmp_path / "tokenizer.json"
    path.write_text(small().text, encoding="utf-8")
    again = Tokenizer.open(path)
    assert again.sha256 == small().sha256
    assert again.encode(WORDS).tolist() == small().encode(WORDS).tolist()


@pytest.mark.parametrize("content", ["", "{}", "not json"])
def test_damaged_file(tmp_path: Path, content: str) -> None:
    """A file that is no tokenizer is an error with the command that repairs it."""
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer .*prepare --repair"):
        Tokenizer.open(path)


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is an error with the same command."""
    with pytest.raises(DataError, match=r"cannot be read .*prepare --repair"):
        Tokenizer.open(tmp_path / "tokenizer.json")


def test_foreign_tokenizer(tmp_path: Path) -> None:
    """A tokenizer without our special tokens is not taken for ours."""
    path = tmp_path / "tokenizer.json"
    path.write_text(small().text.replace(SPECIAL_TOKENS[0], "<|start|>"), encoding="utf-8")
    with pytest.raises(DataError, match=r"has no <\|bos\|> at 336"):
        Tokenizer.open(path)
