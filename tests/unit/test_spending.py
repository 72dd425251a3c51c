"""Money: what a call may cost is booked first, and no cap is passed."""

from __future__ import annotations

from typing import Any

import pytest
from askers import MemoryLedger
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.search.researchers import Exhausted, Unusable
from autoresearch.search.spending import Purse, Usage, add_up, bound_tokens, price_usd
from autoresearch.values.config import SpendingSettings
from autoresearch.values.errors import AutoresearchError

FREE = {"session_usd": 0.0, "proposal_usd": 0.0}


def make_purse(**caps: Any) -> tuple[Purse, MemoryLedger]:
    """A purse of a session that has just begun."""
    ledger = MemoryLedger()
    ledger.append("start_session", branch="b", baseline="c", config={}, host={}, constants={})
    settings = SpendingSettings(**{**FREE, **caps})
    return Purse(ledger, settings), ledger  # type: ignore[arg-type]


def test_the_owners_price_counts_first() -> None:
    """Dollars for a million tokens, read and written."""
    settings = SpendingSettings(input_usd=3.0, output_usd=15.0)
    usage = Usage(input_tokens=1000, output_tokens=100)
    assert price_usd(settings, "anything", usage) == pytest.approx(0.0045)


def test_prices_come_from_the_package() -> None:
    """A model that it knows, one that it does not, an address that it does not know."""
    pytest.importorskip("genai_prices")
    usage = Usage(input_tokens=1000, output_tokens=100)
    assert price_usd(SpendingSettings(), "gpt-5", usage) == pytest.approx(0.00225)
    local = price_usd(SpendingSettings(), "gpt-5", usage, "http://127.0.0.1:1/v1")
    assert local == pytest.approx(0.00225)
    assert price_usd(SpendingSettings(), "nobody/knows-me", usage) is None


@pytest.mark.parametrize(
    ("caps", "usd", "tokens", "message"),
    [
        (
            {"session_usd": 1.0},
            1.1,
            0,
            "session_usd = 1, and the next call could bring that to 1.1",
        ),
        ({"session_tokens": 10}, 0.0, 11, "session_tokens = 10"),
        ({"proposal_usd": 0.5}, 0.6, 0, "the proposal has used 0 of spending.proposal_usd = 0.5"),
        ({"proposal_tokens": 5}, 0.0, 6, "proposal_tokens = 5"),
    ],
)
def test_a_call_that_could_break_a_cap_is_not_made(
    caps: dict[str, float], usd: float, tokens: int, message: str
) -> None:
    """A cap of the session ends its spending, one of the proposal only this turn."""
    purse, ledger = make_purse(**caps)
    kind = Exhausted if message.startswith("session") else Unusable
    with pytest.raises(kind, match=message):
        purse.open("llm", "m", 0, usd, tokens)
    assert ledger.history().calls == ()


def test_calls_are_counted_and_a_new_session_starts_at_nothing() -> None:
    """One that died and went on is the same session."""
    purse, ledger = make_purse(session_calls=2, proposal_calls=1)
    start = {"branch": "b", "baseline": "c", "config": {}, "host": {}, "constants": {}}
    purse.open("llm", "m", 0, 0.0, 1)
    with pytest.raises(Unusable, match="proposal_calls = 1"):
        purse.open("llm", "m", 0, 0.0, 1)
    ledger.append("start_session", **start)  # the one before was killed
    purse.open("llm", "m", 1, 0.0, 1)
    with pytest.raises(Exhausted, match="session_calls = 2"):
        purse.open("llm", "m", 2, 0.0, 1)
    ledger.append("stop_session", reason="done")
    ledger.append("start_session", **start)
    assert purse.open("llm", "m", 2, 0.0, 1) == 3


def test_a_call_that_was_never_closed_stands_at_its_reservation() -> None:
    """The bill says which part is certain."""
    purse, ledger = make_purse()
    first = purse.open("llm", "m", 0, 0.5, 1000)
    purse.close(first, Usage(input_tokens=10, output_tokens=5), 0.01)
    purse.open("llm", "m", 0, 0.25, 300)
    bill = add_up(ledger.history().calls)
    assert (bill.num_calls, bill.num_unsettled, bill.tokens) == (2, 1, 315)
    assert bill.usd == pytest.approx(0.26)
    assert bill.unsettled_usd == pytest.approx(0.25)


def test_a_visit_gets_what_is_left_of_its_proposal() -> None:
    """And none is made when the proposal's cap is used up, or the session has less left."""
    purse, _ = make_purse(session_usd=1.0, proposal_usd=0.6)
    assert purse.budget(0) == (0.6, 0)
    purse.open("agent", "a", 0, 0.6, 0)
    with pytest.raises(Unusable, match=r"proposal_usd = 0\.6"):
        purse.budget(0)
    usd, tokens = purse.budget(1)
    with pytest.raises(Exhausted, match="session_usd = 1"):
        purse.open("agent", "a", 1, usd, tokens)
    assert make_purse()[0].budget(0) == (0.0, 0)


@given(
    st.lists(st.tuples(st.floats(0, 0.4), st.floats(0, 1), st.booleans()), max_size=12),
    st.floats(0.1, 1.0),
)
def test_no_sequence_of_calls_passes_the_cap(
    calls: list[tuple[float, float, bool]], cap: float
) -> None:
    """As long as no call costs more than it reserved, closed or not."""
    purse, ledger = make_purse(session_usd=cap)
    for turn, (reserved, share, is_closed) in enumerate(calls):
        try:
            call_id = purse.open("llm", "m", turn, reserved, 1)
        except AutoresearchError:
            continue
        if is_closed:
            purse.close(call_id, Usage(), reserved * share)
        assert add_up(ledger.history().calls).usd <= cap * (1 + 1e-6)


ODD_FIGURES = [float("nan"), float("inf"), -1, 10**400, "1", None, True, [1]]


@pytest.mark.parametrize("odd", ODD_FIGURES)
def test_a_figure_that_cannot_be_leaves_a_call_at_its_reservation(odd: Any) -> None:
    """Whoever tells it: no cap is undone, and the ledger can be read afterwards."""
    purse, ledger = make_purse()
    call_id = purse.open("llm", "m", 0, 0.5, 1000)
    purse.close(call_id, Usage(input_tokens=1), odd)
    purse.close(call_id, Usage(input_tokens=odd), 0.0)
    purse.close(call_id, Usage(input_tokens=1, output_tokens=odd), 0.0)
    bill = add_up(ledger.history().calls)
    assert (bill.num_unsettled, bill.usd, bill.tokens) == (1, 0.5, 1000)


@pytest.mark.parametrize("odd", [None, -100.0, "abc"])
def test_a_ledger_with_an_odd_figure_counts_that_call_as_unsettled(odd: Any) -> None:
    """Older versions wrote NaN as null, and whatever else a model told."""
    purse, ledger = make_purse()
    call_id = purse.open("agent", "m", 0, 0.5, 1000)
    ledger.append("close_call", call_id=call_id, input_tokens=1, settled_usd=odd)
    assert add_up(ledger.history().calls).usd == 0.5


@given(st.text(max_size=100))
def test_bytes_bound_tokens(text: str) -> None:
    """Whatever the text, surrogates too."""
    assert bound_tokens(text) >= len(text)
