"""What models cost: prices, caps, and a call written down before it is made.

Each request is opened in the ledger with the most that it can cost, and closed with what the
provider counted. A request that was never closed (kill -9, a cut connection), or whose count is no
finite number of at least 0, stands at its reservation: the caps hold whatever happened, and
`report` can tell known from unknown. A token is at least one byte, so the bytes of a prompt bound
its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from autoresearch.search.history import History
from autoresearch.search.ledger import Ledger
from autoresearch.search.researchers import Exhausted, Unusable
from autoresearch.values.config import SpendingSettings
from autoresearch.values.errors import UserError
from autoresearch.values.records import Call
from autoresearch.values.text import figure, whole

_MILLION = 1_000_000
_OF = {"usd": "usd", "tokens": "tokens", "calls": "num_calls"}
_MESSAGE_TOKENS = 64  # what a provider wraps around a prompt, generously


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one call used, as its provider counted; `usd` where the client names a price itself."""

    input_tokens: int = 0  # cached ones included
    cached_tokens: int = 0
    output_tokens: int = 0
    usd: float | None = None
    num_requests: int = 1

    @property
    def is_sound(self) -> bool:
        """Whether these are figures that can be: a provider or a client may tell any."""
        counts = (self.input_tokens, self.cached_tokens, self.output_tokens, self.num_requests)
        return (
            all(whole(count) is not None for count in counts)
            and self.cached_tokens <= self.input_tokens
            and (self.usd is None or figure(self.usd) is not None)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """Calls added up; `unsettled_usd` is the part that stands at its reservation."""

    num_calls: int
    tokens: int
    usd: float
    unsettled_usd: float = 0.0
    num_unsettled: int = 0


def add_up(calls: Iterable[Call]) -> Bill:
    """The bill of some calls."""
    known = list(calls)
    unsettled = [call for call in known if not call.is_settled]
    return Bill(
        num_calls=len(known),
        tokens=sum(call.tokens for call in known),
        usd=math.fsum(call.usd for call in known),
        unsettled_usd=math.fsum(call.usd for call in unsettled),
        num_unsettled=len(unsettled),
    )


def bound_tokens(*texts: str) -> int:
    """No tokenizer makes more tokens of these texts than this."""
    return sum(len(text.encode("utf-8", "replace")) + _MESSAGE_TOKENS for text in texts)


def price_usd(settings: SpendingSettings, model: str, usage: Usage, url: str = "") -> float | None:
    """Dollars for `usage` of `model`: the owner's price, else genai-prices'; None: not known."""
    if settings.input_usd or settings.output_usd:
        read, written = usage.input_tokens, usage.output_tokens
        return (read * settings.input_usd + written * settings.output_usd) / _MILLION
    genai_prices = require_package("genai_prices")
    counted = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        cache_read_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens,
    )
    for where in ({"provider_api_url": url}, {}) if url else ({},):
        try:
            return float(genai_prices.calc_price(counted, model_ref=model, **where).total_price)
        except (LookupError, ValueError):
            continue
    return None


def require_package(name: str) -> Any:
    """Import an optional package.

    Raises:
        UserError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"the package {name} is missing, which researchers that ask a model need; run "
            "`pip install 'autoresearch[agents]'`"
        ) from error


class Purse:
    """Opens and closes calls in the ledger, within the caps."""

    def __init__(self, ledger: Ledger, settings: SpendingSettings) -> None:
        self._ledger = ledger
        self.settings = settings

    @property
    def history(self) -> History:
        """What the ledger knows by now."""
        return self._ledger.history()

    def budget(self, turn: int) -> tuple[float, int]:
        """Dollars and tokens for a visit whose cost nobody can foresee: all that is left.

        That is the rest of the proposal's cap, or of the session's where proposals have none, so
        that a session which has less than that left starts no visit; 0 where there is no cap.

        Raises:
            Unusable: the proposal has used up its cap.
        """
        session, proposal = self._bills(turn)
        caps, left = self.settings, []
        for unit in ("usd", "tokens"):
            cap, used = getattr(caps, f"proposal_{unit}"), getattr(proposal, unit)
            if not cap:
                cap, used = getattr(caps, f"session_{unit}"), getattr(session, unit)
            elif used >= cap:
                raise _over("proposal", unit, cap, proposal, used)
            left.append(max(0.0, cap - used))
        return left[0], int(left[1])

    def open(self, researcher: str, model: str, turn: int, usd: float, tokens: int) -> int:
        """Write down that a call begins which costs at most `usd` and `tokens`; its number.

        Raises:
            Exhausted: it could break a cap of the session.
            Unusable: it could break a cap of the proposal.
        """
        session, proposal = self._bills(turn)
        for scope, bill in (("session", session), ("proposal", proposal)):
            wanted = {"usd": bill.usd + usd, "tokens": bill.tokens + tokens}
            wanted["calls"] = bill.num_calls + 1
            for unit, most in wanted.items():
                cap = getattr(self.settings, f"{scope}_{unit}")
                is_met = scope == "session" and getattr(bill, _OF[unit]) >= cap
                if cap and (is_met or most > cap * (1 + 1e-9)):
                    raise _over(scope, unit, cap, bill, most)
        call_id = len(self.history.calls) + 1
        call = {"call_id": call_id, "turn": turn, "researcher": researcher, "model": model}
        self._ledger.append("open_call", **call, reserved_usd=usd, reserved_tokens=tokens)
        return call_id

    def close(self, call_id: int, usage: Usage, usd: float) -> None:
        """Write down what the call used; figures that cannot be leave it at its reservation."""
        if not usage.is_sound or figure(usd) is None:
            return
        self._ledger.append(
            "close_call",
            call_id=call_id,
            num_requests=usage.num_requests,
            input_tokens=usage.input_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=usage.output_tokens,
            settled_usd=usd,
        )

    def _bills(self, turn: int) -> tuple[Bill, Bill]:
        """Of the session in hand, and of the proposal."""
        history = self.history
        calls = [call for call in history.calls if call.seq > history.began_seq]
        return add_up(calls), add_up(call for call in calls if call.turn == turn)


def _over(scope: str, unit: str, cap: float, bill: Bill, most: float) -> Exception:
    spent = getattr(bill, _OF[unit])
    reason = f"the {scope} has used {spent:.6g} of spending.{scope}_{unit} = {cap:.6g}"
    if spent < cap:
        reason += f", and the next call could bring that to {most:.6g}"
    if scope == "session":
        return Exhausted(f"{reason}; raise the cap, or run again for a new session")
    return Unusable("cap", reason)
