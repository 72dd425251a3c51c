"""A model's answer as an edit of train.py, applied to the letter or not at all.

Two forms: blocks of search and replace, or the whole file in one fence. A text to be replaced must
stand in the file exactly once; nothing is guessed, no white space is forgiven. What is wrong comes
back as a sentence that the model can act on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from autoresearch.values.errors import AutoresearchError
from autoresearch.values.text import one_line

FORMAT = """\
Answer with one line `DESCRIPTION: what you changed and why it should help`, then the edit, in one
of two forms. Either one or more blocks

<<<<<<< SEARCH
lines that stand in train.py exactly once, copied to the letter
=======
lines that take their place
>>>>>>> REPLACE

or, for a large change, the whole new train.py in a single ```python fence. A line
`SIMPLIFICATION: yes` beside the description says that the edit only removes code."""

_OPEN, _MIDDLE, _CLOSE = "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"
_FENCES = ("```python", "```py", "```")
_DESCRIPTION = re.compile(r"^[*# ]*DESCRIPTION:[* ]*(.+)$", re.MULTILINE)
_SIMPLER = re.compile(r"^[*# ]*SIMPLIFICATION:[* ]*yes\b", re.MULTILINE | re.IGNORECASE)


class EditError(AutoresearchError):
    """An answer that cannot be applied; the message is for the model that wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A new train.py and what its author says of it."""

    source: str
    description: str
    is_simplification: bool = False


def parse_reply(reply: str, source: str) -> Edit:
    """The edit that `reply` makes of `source`.

    Raises:
        EditError: it has no edit, or one that does not apply.
    """
    reply = reply.replace("\r\n", "\n")
    blocks = _find_blocks(reply)
    edited = replace_blocks(source, blocks) if blocks else _whole_file(reply)
    return Edit(
        source=edited,
        description=describe_reply(reply),
        is_simplification=is_simplification(reply),
    )


def describe_reply(reply: str) -> str:
    """What the answer's DESCRIPTION line says, or ""."""
    found = _DESCRIPTION.search(reply)
    return one_line(found[1]) if found else ""


def is_simplification(reply: str) -> bool:
    """Whether the answer says that it only removes code."""
    return bool(_SIMPLER.search(reply))


def _find_blocks(reply: str) -> list[tuple[str, str]]:
    """What each block searches and puts in its place; one pass, whatever marks there are."""
    blocks: list[tuple[str, str]] = []
    halves: list[list[str]] = []  # of the block in hand
    for line in reply.split("\n"):
        mark = line.rstrip(" ")
        if mark == _OPEN and not halves:
            halves = [[]]
        elif mark == _MIDDLE and len(halves) == 1:
            halves.append([])
        elif mark == _CLOSE and len(halves) == 2:
            search, replacement = ("".join(half) for half in halves)
            blocks.append((search, replacement))
            halves = []
        elif line.startswith((_OPEN, _CLOSE)):
            raise _not_closed()
        elif halves:
            halves[-1].append(f"{line}\n")
    if halves:
        raise _not_closed()
    return blocks


def _not_closed() -> EditError:
    return EditError(
        "a SEARCH/REPLACE block is not closed, expected <<<<<<< SEARCH, =======, "
        ">>>>>>> REPLACE, each on a line of its own"
    )


def _find_fences(reply: str) -> list[str]:
    """What stands in fences of Python; one that is not closed is none."""
    found: list[str] = []
    inside: list[str] | None = None
    for line in reply.split("\n"):
        mark = line.rstrip(" ")
        if inside is None:
            inside = [] if mark in _FENCES else None
        elif mark == "```":
            found.append("".join(inside))
            inside = None
        else:
            inside.append(f"{line}\n")
    return found


def _whole_file(reply: str) -> str:
    fences = _find_fences(reply)
    if len(fences) != 1:
        raise EditError(
            f"the answer has {len(fences)} ```python fences and no SEARCH/REPLACE block, expected "
            "blocks or a single fence with the whole of train.py"
        )
    return fences[0]


def replace_blocks(source: str, blocks: Sequence[tuple[str, str]]) -> str:
    """Each block's second text in place of its first, all found in the file as it was.

    Raises:
        EditError: a first text does not stand in `source` exactly once, or two overlap.
    """
    places: list[tuple[int, str, str]] = []
    for number, (search, replacement) in enumerate(blocks, start=1):
        count = source.count(search) if search.strip() else 0
        if count != 1:
            first = one_line(search, 80)
            raise EditError(
                f"the text to search in block {number} stands in train.py {count} times, expected "
                f"exactly once (it begins {first!r}); copy the lines to the letter, with enough "
                "of their neighbours"
            )
        places.append((source.index(search), search, replacement))
    places.sort()
    for (start, search, _), (following, _, _) in pairwise(places):
        if start + len(search) > following:
            raise EditError("two blocks change the same lines; join them into one")
    for start, search, replacement in reversed(places):  # so that the places before stay true
        source = source[:start] + replacement + source[start + len(search) :]
    return source
