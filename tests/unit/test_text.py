"""Text and figures of untrusted origin are harmless afterwards."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from autoresearch.values.text import MOST_VALUES, one_line, plain_values


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
