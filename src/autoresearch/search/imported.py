"""History that was made elsewhere: a results.tsv in the reference's format, as read and as shown.

Rows have commit, val_bpb, memory_gb, status (keep, discard, crash) and description, tab separated.
They are kept beside the trials, never among them: scored by other code, on other rows, perhaps on
another machine and budget, they compare with each other and not with ours. A crash has 0.000000
there and no score here.
"""

from __future__ import annotations

from collections import Counter

from autoresearch.search.history import History, ImportedTrial
from autoresearch.values.errors import UserError
from autoresearch.values.text import one_line

IMPORTER = "import"  # the researcher of trials that `autoresearch import` made
COLUMNS = ("commit", "val_bpb", "memory_gb", "status", "description")
STATUSES = ("keep", "discard", "crash")
MAX_ROWS = 10_000


def parse_results(text: str, name: str = "results.tsv") -> tuple[ImportedTrial, ...]:
    """The rows of a results.tsv, in order.

    Raises:
        UserError: another header, or a line that is no such row; the message has its number.
    """
    lines = text.splitlines()
    header = tuple(lines[0].strip().split("\t")) if lines else ()
    if header != COLUMNS:
        raise UserError(
            f"{name} starts with {one_line(lines[0])[:80] if lines else 'nothing'!r}, expected the "
            f"columns {' '.join(COLUMNS)}, separated by tabs"
        )
    if len(lines) > MAX_ROWS + 1:
        raise UserError(f"{name} has {len(lines) - 1} rows, {MAX_ROWS} at most are taken")
    rows = enumerate(lines[1:], start=2)
    return tuple(_parse_row(line, f"{name} line {n}") for n, line in rows if line.strip())


def _parse_row(line: str, where: str) -> ImportedTrial:
    cells = [cell.strip() for cell in line.split("\t", len(COLUMNS) - 1)]
    if len(cells) != len(COLUMNS):
        raise UserError(f"{where} has {len(cells)} columns, expected {len(COLUMNS)}")
    commit, val_bpb, memory_gb, status, description = cells
    if status not in STATUSES:
        raise UserError(f"{where}: status is {status!r}, expected {', '.join(STATUSES)}")
    try:
        score, memory = float(val_bpb), float(memory_gb)
    except ValueError as error:
        raise UserError(f"{where}: {error}; val_bpb and memory_gb must be numbers") from error
    is_scored = status != "crash" and 0 < score < float("inf")
    return ImportedTrial(
        commit=commit[:40],
        val_bpb=score if is_scored else None,
        memory_gb=memory if 0 <= memory < float("inf") else 0.0,
        status=status,
        description=one_line(description)[:400],
    )


def imported_lines(history: History, limit: int = 15) -> list[str]:
    """What a person or a model should know of it: counts, then what was kept, the last first."""
    rows = history.imported
    if not rows:
        return []
    counts = Counter(row.status for row in rows)
    told = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    scores = [row.val_bpb for row in rows if row.val_bpb is not None]
    span = f", val_bpb {scores[0]:.4f} to {min(scores):.4f}" if scores else ""
    lines = [f"{len(rows)} imported trials ({told}{span}); not comparable with the scores here"]
    kept = [row for row in reversed(rows) if row.status == "keep" and row.val_bpb is not None]
    lines += [f"imported, kept: {row.val_bpb:.4f} {row.description}" for row in kept[:limit]]
    if len(kept) > limit:
        lines.append(f"and {len(kept) - limit} more that were kept")
    return lines
