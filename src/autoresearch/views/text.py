"""Text and numbers for people.

Descriptions, reasons and reported values come from researchers and candidates. They are data:
everything that a terminal, a table or a Markdown page could take for an instruction (escape
sequences, control characters, line and direction marks, markup) is removed or escaped here, once,
before any view shows it.
"""

from __future__ import annotations

import math
import re
import unicodedata

from autoresearch.values.records import Verdict

# ESC [ ... letter; ESC ] ... BEL or ESC backslash; both with their one-byte forms; ESC and a letter
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b\]|\x9d).*?(?:\x07|\x1b\\|\x9c|\n|$)"
    r"|\x1b[@-Z\\^_a-z]?"
)
_UNSHOWN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
# an underscore inside a word is no markup, and names of constants read better without the backslash
_MARKDOWN = re.compile(r"([\\`*\[\]<|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def clean(text: object, limit: int = 0) -> str:
    """`text` as one printable line, cut to `limit` characters (0: not cut)."""
    without = _ESCAPES.sub("", str(text))
    line = " ".join(
        "".join(" " if unicodedata.category(c) in _UNSHOWN else c for c in without).split()
    )
    return line if not limit or len(line) <= limit else line[: limit - 3].rstrip() + "..."


def clean_lines(text: object) -> list[str]:
    """`text` as printable lines; indentation stays, tabs become spaces."""
    lines = _ESCAPES.sub("", str(text)).expandtabs(4).split("\n")
    return [
        "".join("" if unicodedata.category(c) in _UNSHOWN else c for c in line).rstrip()
        for line in lines
    ]


def markdown(text: object, limit: int = 0) -> str:
    """`clean(text)` with every character escaped that Markdown could take for markup."""
    return _MARKDOWN.sub(r"\\\1", clean(text, limit))


def bpb(value: float | None) -> str:
    """A score with four decimals, or a dash where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"


def signed(value: float | None) -> str:
    """A gain in val_bpb with its sign; gains are positive when the score fell."""
    return "-" if value is None or not math.isfinite(value) else f"{value:+.4f}"


def percent(part: float | None, whole: float | None) -> str:
    """`part` as a percentage of `whole` with two significant decimals."""
    return "-" if part is None or not whole else f"{100 * part / whole:.2f} %"


def duration(seconds: float) -> str:
    """Seconds in the two units that a person would use."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60:02d} s" if whole % 60 else "")
    minutes = whole // 60
    return f"{minutes // 60} h" + (f" {minutes % 60:02d} min" if minutes % 60 else "")


def plural(count: int, noun: str) -> str:
    """`3 trials`, `1 trial`."""
    return f"{count} {noun if count == 1 else noun + ('es' if noun.endswith(('s', 'sh')) else 's')}"


def count_verdicts(counts: dict[Verdict, int]) -> str:
    """`3 kept, 1 near miss, 2 crashes`."""
    participles = {
        Verdict.KEEP: "kept",
        Verdict.DISCARD: "discarded",
        Verdict.INTERRUPTED: "interrupted",
    }
    return ", ".join(
        f"{count} {participles[verdict]}"
        if verdict in participles
        else plural(count, verdict.value.replace("_", " "))
        for verdict, count in counts.items()
    )


def short(commit: str | None) -> str:
    """The first seven hex digits of a commit."""
    return clean(commit or "-")[:7]
