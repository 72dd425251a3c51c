"""A results.tsv as it is read, and how it is told."""

from __future__ import annotations

import dataclasses

import pytest

from autoresearch.search.history import Event, Fold, History
from autoresearch.search.imported import imported_lines, parse_results
from autoresearch.values.errors import UserError

HEADER = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"
TEXT = HEADER + (
    "a1b2c3d\t0.997900\t44.0\tkeep\tbaseline\n"
    "b2c3d4e\t0.993200\t44.2\tkeep\tmatrix rate to 0.04\n"
    "c3d4e5f\t1.005000\t44.0\tdiscard\tGeLU\twith a tab\n"
    "\n"
    "d4e5f6g\t0.000000\t0.0\tcrash\t\x1b[31mtwice the width\x1b[0m\n"
)


def test_rows_are_read_in_order_and_a_crash_has_no_score() -> None:
    """Four rows; control characters are gone, a tab in the last column is text."""
    rows = parse_results(TEXT)
    assert [row.status for row in rows] == ["keep", "keep", "discard", "crash"]
    assert [row.val_bpb for row in rows] == [0.9979, 0.9932, 1.005, None]
    assert rows[2].description == "GeLU with a tab"
    assert "\x1b" not in rows[3].description
    assert rows[1].memory_gb == 44.2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "starts with 'nothing'"),
        ("a\tb\n", "expected the columns commit"),
        (HEADER + "a\t1.0\t2.0\tkeep\n", "line 2 has 4 columns"),
        (HEADER + "a\t1.0\t2.0\tkeep\tfine\nb\tx\t2.0\tkeep\tno\n", "line 3: could not convert"),
        (HEADER + "a\t1.0\t2.0\tkept\tno\n", "status is 'kept', expected keep, discard, crash"),
    ],
)
def test_what_is_no_such_table_is_refused_with_its_line(text: str, said: str) -> None:
    """The message names the line and what was expected."""
    with pytest.raises(UserError, match=said):
        parse_results(text)


def test_history_tells_it_apart_from_trials() -> None:
    """It goes with its branch, also before a session; the lines say that it does not compare."""
    rows = [dataclasses.asdict(row) for row in parse_results(TEXT)]
    fold = Fold()
    body = {"branch": "autoresearch/main", "origin": "elsewhere", "rows": rows}
    fold.add(Event(seq=1, at=0.0, kind="import_results", body=body))
    history = fold.history("autoresearch/main")
    assert history.trials == ()
    assert history.num_proposals == 0
    first, *kept = imported_lines(history)
    assert first.startswith("4 imported trials (2 keep, 1 discard, 1 crash, val_bpb 0.9979 to 0.99")
    assert "not comparable" in first
    assert kept == [
        "imported, kept: 0.9932 matrix rate to 0.04",
        "imported, kept: 0.9979 baseline",
    ]
    assert imported_lines(history, limit=1)[-1] == "and 1 more that were kept"
    assert imported_lines(History()) == []
