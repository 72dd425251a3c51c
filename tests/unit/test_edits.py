"""Answers of models are applied to the letter or refused with a sentence that helps."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.search.edits import EditError, parse_reply

SOURCE = "A = 1\nB = 2\n\n\ndef main(run):\n    return A + B\n"


def block(search: str, replacement: str) -> str:
    """One block as a model writes it."""
    return f"<<<<<<< SEARCH\n{search}=======\n{replacement}>>>>>>> REPLACE\n"


def test_blocks_change_what_they_name() -> None:
    """Two blocks in any order, prose around them, the description told."""
    reply = (
        "Sure.\nDESCRIPTION: swap them\nSIMPLIFICATION: yes\n"
        + block("    return A + B\n", "    return B\n")
        + block("A = 1\n", "A = 3\n")
    )
    edit = parse_reply(reply, SOURCE)
    assert edit.source == "A = 3\nB = 2\n\n\ndef main(run):\n    return B\n"
    assert edit.description == "swap them"
    assert edit.is_simplification


def test_a_whole_file_takes_the_place_of_the_old_one() -> None:
    """In a single fence; Windows line ends and bold marks do no harm."""
    edit = parse_reply("**DESCRIPTION:** new\r\n```python\r\nA = 9\r\n```\r\n", SOURCE)
    assert (edit.source, edit.description) == ("A = 9\n", "new")
    assert not edit.is_simplification


def test_a_deletion_needs_no_replacement() -> None:
    """An empty second half removes the lines."""
    assert parse_reply(block("B = 2\n", ""), SOURCE).source == SOURCE.replace("B = 2\n", "")


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("", "has 0 ```python fences and no SEARCH/REPLACE block"),
        ("```\na\n```\n```\nb\n```\n", "has 2 ```python fences"),
        (block("C = 1\n", "C = 2\n"), "block 1 stands in train.py 0 times, expected exactly once"),
        (block("A = 1 \n", "A = 2\n"), "stands in train.py 0 times"),
        (block("\n", "x\n"), "stands in train.py 0 times"),
        (block(" ", "x\n"), "not closed|stands in train.py"),
        ("<<<<<<< SEARCH\nA = 1\n=======\nA = 2\n", "is not closed"),
        (block("A = 1\nB = 2\n", "") + block("B = 2\n", ""), "two blocks change the same lines"),
    ],
)
def test_what_does_not_apply_is_explained(reply: str, message: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(EditError, match=message):
        parse_reply(reply, SOURCE)


def test_a_text_that_stands_twice_is_not_replaced() -> None:
    """Neither of them could be meant."""
    with pytest.raises(EditError, match=r"stands in train\.py 2 times"):
        parse_reply(block("x = 1\n", "x = 2\n"), "x = 1\ny = 0\nx = 1\n")


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("line", "message"),
    [("<<<<<<< SEARCH\n", "not closed"), ("```python\n", "has 0 ```python fences"),
     ("<<<<<<< SEARCH\n=======\n", "not closed"), ("=======\n", "has 0 ```python fences")],
)  # fmt: skip
def test_marks_without_end_are_read_once(line: str, message: str) -> None:
    """300 KB of them took most of a minute when each was looked for up to the end."""
    with pytest.raises(EditError, match=message):
        parse_reply(line * (300_000 // len(line)), SOURCE)


@pytest.mark.parametrize("end", ["", " ", "\n", "  \n\nDone."])
def test_marks_may_have_blanks_behind_them(end: str) -> None:
    """And the last line needs no end; a block in an open fence counts."""
    reply = f"```\n<<<<<<< SEARCH \nA = 1\n=======  \nA = 2\n>>>>>>> REPLACE{end}"
    assert parse_reply(reply, SOURCE).source == SOURCE.replace("A = 1", "A = 2")
    assert parse_reply(f"```py \nA\n```{end}", SOURCE).source == "A\n"


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_answer_is_an_edit_or_an_explanation(before: str, after: str) -> None:
    """No text of a model raises anything else."""
    for reply in (before, block(before, after), f"```python\n{before}\n```{after}"):
        with contextlib.suppress(EditError):
            assert isinstance(parse_reply(reply, SOURCE).source, str)
