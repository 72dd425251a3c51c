"""Text and figures of untrusted origin are harmless afterwards."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.values import text
from autoresearch.values.text import (
    HIDDEN,
    MOST_VALUES,
    fence,
    one_line,
    plain_values,
    redact,
    secrets_of,
    telling,
)


@given(st.text(st.characters(), max_size=600), st.integers(4, 400))
def test_one_line_is_one_clean_short_line(text: str, most: int) -> None:
    """No control character, no line break, no more than asked for, and encodable."""
    line = one_line(text, most)
    assert len(line) <= most
    assert not any(unicodedata.category(c)[0] == "C" for c in line)
    assert len(line.splitlines()) <= 1
    line.encode()


def test_escape_sequences_are_disarmed() -> None:
    """A terminal sees no escape, a reader sees one line."""
    assert one_line("loss\x1b[2J\n\n  is\u202e 3\x00") == "loss[2J is 3"


def test_what_is_no_dict_gives_no_values() -> None:
    """A list, a text or nothing claims nothing."""
    assert plain_values([1]) == plain_values("x") == plain_values(None) == {}


def test_only_plain_values_stay() -> None:
    """Names and texts are cleaned, structures and nulls left out, the number of entries bounded."""
    values = {"a\nb": 1, "s": "x\x1b\ny", "f": 0.5, "t": True, "list": [1], "none": None}
    assert plain_values(values) == {"a b": 1, "s": "x y", "f": 0.5, "t": True}
    assert len(plain_values({str(i): i for i in range(1000)})) == MOST_VALUES
    assert len(plain_values({"n": "x" * 1000})["n"]) == 100


@given(st.text(st.characters(), max_size=300), st.text(max_size=20), st.integers(40, 200))
def test_a_fence_cannot_be_closed_from_inside(text: str, label: str, most: int) -> None:
    """Its end mark stands once, at the end; nothing inside but printable characters."""
    first = fence(text, label, most)
    twice = fence(first + text, label, 10_000)
    end = twice.splitlines()[-1]
    assert twice.count(end) == 1
    assert not any(unicodedata.category(c)[0] == "C" for c in re.sub(r"[\n\t]", "", twice))
    assert len(first) < most + 400


def test_keys_are_blacked_out() -> None:
    """Those of the environment whatever they look like, others by their shape; words stay."""
    secrets = secrets_of({"MY_API_KEY": "correct horse", "PATH": "/usr/bin", "A_TOKEN": "short"})
    assert secrets == ("correct horse",)
    text = "correct horse sk-ant-" + "x1y2" * 6 + " https://u:secret@host/ key and token"
    clean = redact(text, secrets)
    assert clean == f"{HIDDEN} {HIDDEN} https://{HIDDEN}@host/ key and token"


def test_a_key_at_the_cut_is_not_told_by_half() -> None:
    """Nor one with a control character in its middle."""
    told = telling("x" * 290 + "correct horse battery", ["correct horse battery"])
    assert "correct" not in told
    assert telling("correct\x00 horse", ["correct horse"]) == HIDDEN


@pytest.mark.timeout(10)
@pytest.mark.parametrize("beginning", ["sk-", "hf-", "-pk", "bearer ", "://a:"])
def test_what_begins_like_keys_without_end_is_read_once(beginning: str) -> None:
    """300 KB of it would take minutes if each beginning were followed to the end."""
    assert redact(beginning * (300_000 // len(beginning)), ()) != ""


def test_a_fenced_program_can_be_copied() -> None:
    """Tabs and blanks at the ends of lines stay, escape sequences go whole."""
    program = "\nif x:\n\ty = 1  \n"
    assert f"\n{program}\n" in fence(program, "train.py")
    assert "\na loss b\n" in fence("a \x1b[31mloss\x1b[0m\r b\x00", "log")


def test_programs_are_not_taken_for_keys() -> None:
    """Our own train.py, and long names that begin like keys."""
    train = Path(text.__file__).parents[1] / "templates" / "train.py"
    for program in (train.read_text(), "hf_tokenizer_of_the_corpus = sk-learning_rate_scale\n"):
        assert redact(program, ()) == program
