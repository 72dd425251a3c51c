"""What process trees need that no process shows; tests/e2e/test_procs.py starts them."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.system import procs
from autoresearch.system.procs import CappedOutput, spawn


@given(parts=st.lists(st.binary(max_size=40), max_size=20), cap=st.integers(0, 60))
def test_capped_output_keeps_the_ends_and_counts_the_rest(parts: list[bytes], cap: int) -> None:
    """Head and tail together stay under the cap; every byte is kept or counted."""
    output = CappedOutput(cap)
    for part in parts:
        output.add(part)
    everything, half = b"".join(parts), max(1, cap // 2)
    assert output.total_bytes == len(everything)
    if len(everything) <= 2 * half:
        assert output.text() == everything.decode("utf-8", "replace")
    else:
        gap = f"\n[... {len(everything) - 2 * half} bytes dropped ...]\n".encode()
        kept = everything[:half] + gap + everything[-half:]
        assert output.text() == kept.decode("utf-8", "replace")


def test_a_program_that_is_not_there_is_an_error() -> None:
    """Nothing was started."""
    with pytest.raises(OSError, match="no-such-program"):
        spawn(["/no-such-program"], env={})


def test_elsewhere_prctl_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No error on macOS, and no claim either."""
    monkeypatch.setattr(sys, "platform", "darwin")
    procs.die_with_parent()
    procs.guard_this_process()
    assert procs.is_dumpable()
