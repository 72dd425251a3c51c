"""Text and figures that come from untrusted code, made harmless before they reach a file, a
terminal or a model.
"""

from __future__ import annotations

import unicodedata
from typing import Any

MOST_CHARACTERS = 300
MOST_VALUES = 32


def one_line(text: str, most: int = MOST_CHARACTERS) -> str:
    """`text` as one line without control or format characters, cut at `most` characters."""
    flat = " ".join(text.split())
    clean = "".join(c for c in flat if unicodedata.category(c)[0] != "C")
    return clean if len(clean) <= most else clean[: most - 3] + "..."


def plain_values(values: Any) -> dict[str, float | int | str | bool]:
    """Names and plain values out of something that claims to be a dict of them.

    What is not is left out.
    """
    if not isinstance(values, dict):
        return {}
    kept: dict[str, float | int | str | bool] = {}
    for name, value in list(values.items())[:MOST_VALUES]:
        if isinstance(value, str):
            value = one_line(value, 100)
        if isinstance(value, bool | int | float | str):
            kept[one_line(str(name), 40)] = value
    return kept
