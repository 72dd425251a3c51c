"""A language model behind an API that speaks OpenAI's chat completions, through the openai package.

The model sees the briefing and train.py and answers with an edit (search.edits), which is applied
to the letter. Which of several models is asked is drawn from the seed and the turn. Every request,
each retry on 429, 5xx or a cut connection included, is written down before it is sent. The key is
read from the environment and held in memory only. An answer may hold anything: each part is looked
at before it is used, and what is not as it should be is told in words.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any

from autoresearch.search.briefing import turn_of, write_briefing
from autoresearch.search.edits import FORMAT, Edit, EditError, parse_reply
from autoresearch.search.history import History
from autoresearch.search.researchers import Desk, Unusable
from autoresearch.search.spending import Purse, Usage, bound_tokens, price_usd, require_package
from autoresearch.values.errors import AutoresearchError, UserError
from autoresearch.values.records import Proposal
from autoresearch.values.text import fence, one_line, redact, telling

_UNREADABLE = (ValueError, RecursionError, TypeError, AttributeError, OverflowError)
_MOST_BODY_BYTES = 16 << 20
_GRACE_S = 1.0
MOST_EDIT = 8000  # characters of a refused answer that the ledger keeps


class LlmResearcher:
    """Asks one of its models for an edit; a function of the history and of what the model says."""

    def __init__(self, desk: Desk, *, seed: int = 0, name: str = "llm") -> None:
        self.name = name
        self.extra = ""  # a section that a hybrid adds to the briefing
        self._desk = desk
        self.secrets = desk.secrets()
        self._seed = seed
        self._settings = desk.config.llm
        self._purse = Purse(desk.ledger, desk.config.spending)
        self._models = read_models(self._settings.models)
        self._openai: Any = require_package("openai")
        self._key = self._read_key()
        for model, _ in self._models:
            self._require_price(model)

    def propose(self, history: History, champion_commit: str, champion_source: str) -> Proposal:
        """The model's edit of the champion."""
        model = self._pick(history)
        briefing = write_briefing(self._desk, history, champion_source, self.extra)
        program = fence(champion_source, "train.py of the champion", len(champion_source))
        reply = self._ask(model, f"{briefing}\n\n{program}\n\n{FORMAT}", turn_of(history))
        kept = redact(reply, self.secrets)
        if kept != reply:
            reason = "the answer holds what looks like a key, which must not get into git"
            raise Unusable("secret", reason, edit=kept[:MOST_EDIT])
        try:
            edit: Edit = parse_reply(reply, champion_source)
        except EditError as error:
            kind = "no_edit" if reply.strip() else "empty"
            raise Unusable(kind, str(error), edit=kept[:MOST_EDIT]) from error
        return Proposal(
            source=edit.source,
            description=edit.description or f"an edit by {one_line(model, 60)}",
            parent=champion_commit,
            researcher=self.name,
            is_simplification=edit.is_simplification,
        )

    def _pick(self, history: History) -> str:
        """A retry goes to the model whose answer it mends."""
        rng = random.Random(f"{self._seed}/model/{turn_of(history)}")  # noqa: S311 - no secret
        names = [name for name, _ in self._models]
        return rng.choices(names, [weight for _, weight in self._models])[0]

    def _ask(self, model: str, prompt: str, turn: int) -> str:
        """The model's answer; the client tries again by itself where that may help."""
        timeout_s = self._settings.timeout_s
        meter = _Meter(lambda: self._open(model, prompt, turn), timeout_s)
        limit = "max_tokens" if self._settings.base_url else "max_completion_tokens"
        openai = self._openai
        try:
            with openai.DefaultHttpxClient(
                event_hooks=meter.hooks, follow_redirects=False
            ) as transport:
                client = openai.OpenAI(
                    api_key=self._key,
                    base_url=self._settings.base_url or None,
                    max_retries=self._settings.retries,
                    timeout=timeout_s,
                    http_client=transport,
                )
                answer = client.chat.completions.with_raw_response.create(
                    model=model,
                    messages=[{"role": "user", "content": prompt}],
                    **{limit: self._settings.max_output_tokens},
                )
        except _Stop as stop:
            said = redact(str(stop.reason), self.secrets)
            raise (
                stop.reason if said == str(stop.reason) else Unusable("unreachable", said)
            ) from None
        except openai.APITimeoutError as error:
            raise Unusable("hang", f"no answer in {timeout_s:g} s") from error
        except openai.OpenAIError as error:
            if meter.is_late:
                raise Unusable("hang", f"no whole answer in {timeout_s:g} s") from error
            said = telling(str(error), self.secrets)
            raise Unusable("unreachable", f"{type(error).__name__}: {said}") from error
        except _UNREADABLE as error:  # out of the package, at headers of a strange server
            said = telling(str(error), self.secrets)
            raise Unusable("unreachable", f"the answer cannot be read: {said}") from error
        finally:
            meter.rest()
        return self._settle(_read_body(answer.content), model, meter)

    def _settle(self, answer: dict[str, Any], model: str, meter: _Meter) -> str:
        """Write down what was used; the text of the answer."""
        usage = _read_usage(answer.get("usage"))
        if usage is not None and meter.call_id:
            self._purse.close(meter.call_id, usage, self._price(model, usage))
        choices = answer.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise Unusable("empty", "the answer holds no choice with a message")
        if refusal := message.get("refusal"):
            said = telling(str(refusal), self.secrets)
            raise Unusable("refusal", f"the model declined: {said}")
        if choice.get("finish_reason") == "length":
            most = self._settings.max_output_tokens
            raise Unusable("cut", f"the answer was cut at llm.max_output_tokens = {most}")
        return _read_content(message.get("content"))

    def _open(self, model: str, prompt: str, turn: int) -> tuple[int, Callable[[], None]]:
        """Reserve one request; how to close it when the server turned it down."""
        bound = Usage(
            input_tokens=bound_tokens(prompt), output_tokens=self._settings.max_output_tokens
        )
        tokens = bound.input_tokens + bound.output_tokens
        call_id = self._purse.open(self.name, model, turn, self._price(model, bound), tokens)
        return call_id, lambda: self._purse.close(call_id, Usage(), 0.0)

    def _price(self, model: str, usage: Usage) -> float:
        settings = self._desk.config.spending
        return price_usd(settings, model, usage, self._settings.base_url) or 0.0

    def _read_key(self) -> str:
        name = self._settings.key_variable
        if not name:
            return "none"
        key = self._desk.environment.get(name, "")
        if not key:
            raise UserError(
                f"the environment variable {name} is empty, expected the key of the model's API; "
                f'run `export {name}=...`, or set llm.key_variable = "" for a server without keys'
            )
        return key

    def _require_price(self, model: str) -> None:
        """A cap in dollars needs a price, unless the owner's own server costs nothing."""
        caps = self._desk.config.spending
        is_priced = price_usd(caps, model, Usage(), self._settings.base_url) is not None
        if not is_priced and (caps.session_usd or caps.proposal_usd):
            raise UserError(
                f"no price is known for the model {model!r}, and spending has a cap in dollars; "
                "set spending.input_usd and output_usd, or both caps in dollars to 0"
            )


class _Stop(BaseException):
    """Carries a refusal through the openai package, which tries again on every Exception."""

    def __init__(self, reason: AutoresearchError) -> None:
        super().__init__(reason)
        self.reason = reason


class _Meter:
    """Writes each request down before it leaves, and closes those that were answered by an error.

    A request whose answer never came stays open: what the provider counted is not known. An answer
    comes as a whole within the time limit, from the address that was asked, or it is given up.
    """

    def __init__(
        self, opener: Callable[[], tuple[int, Callable[[], None]]], timeout_s: float
    ) -> None:
        self._opener = opener
        self._timeout_s = timeout_s
        self._deadline = 0.0
        self._socket: Any = None
        self._alarm: threading.Timer | None = None
        self.is_late = False
        self._turn_down: Callable[[], None] = lambda: None
        self.call_id = 0
        self.hooks = {"request": [self._sending], "response": [self._answered]}

    def _sending(self, request: Any) -> None:
        if self.is_late:
            raise _Stop(Unusable("hang", f"no whole answer in {self._timeout_s:g} s"))
        try:
            self.call_id, self._turn_down = self._opener()
        except AutoresearchError as reason:
            raise _Stop(reason) from None
        request.headers["Accept-Encoding"] = "identity"  # a small body cannot become a large one
        request.extensions = {**request.extensions, "trace": self._trace}
        self._deadline = monotonic() + self._timeout_s
        self.rest()
        self._alarm = threading.Timer(self._timeout_s + _GRACE_S, self._hang_up)
        self._alarm.daemon = True
        self._alarm.start()

    def rest(self) -> None:
        """No request is on its way any more."""
        if self._alarm:
            self._alarm.cancel()

    def _trace(self, event: str, facts: dict[str, Any]) -> None:
        """Remember the connection, which httpx tells only here before an answer has begun."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = facts["return_value"].get_extra_info("socket")

    def _hang_up(self) -> None:
        """In a thread of its own: a server that drips headers never lets a read run into its limit.

        One that is silent does, so that this comes later and leaves it to be asked again.
        """
        self.is_late = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _answered(self, response: Any) -> None:
        if response.status_code >= 300:
            self._turn_down()
        if response.is_redirect:
            where = one_line(response.headers.get("location", "nowhere"), 200)
            raise _Stop(Unusable("unreachable", (
                f"the server answers {response.status_code}, go to {where}, which is not followed; "
                "set llm.base_url to the address that answers"
            )))  # fmt: skip
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            reason = f"the answer cannot be read: it is packed ({one_line(encoding, 40)})"
            raise _Stop(Unusable("unreachable", reason))
        response.stream = _bound_stream(response.stream, self._check_body)

    def _check_body(self, num_bytes: int) -> None:
        """Give an answer up that goes on for too long."""
        if monotonic() > self._deadline:
            raise _Stop(Unusable("hang", f"no whole answer in {self._timeout_s:g} s"))
        if num_bytes > _MOST_BODY_BYTES:
            reason = f"the answer has more than {_MOST_BODY_BYTES} bytes"
            raise _Stop(Unusable("unreachable", reason))


def _bound_stream(stream: Any, check: Callable[[int], None]) -> Any:
    """`stream`, with `check` told after each part how many bytes have come."""
    base = require_package("httpx").SyncByteStream

    class Bounded(base):  # type: ignore[misc, valid-type]
        def __iter__(self) -> Iterator[bytes]:
            num_bytes = 0
            for part in stream:
                num_bytes += len(part)
                check(num_bytes)
                yield part

        def close(self) -> None:
            stream.close()

    return Bounded()


def _read_body(body: bytes) -> dict[str, Any]:
    """The JSON object that a server sent."""
    try:
        answer = json.loads(body)
    except _UNREADABLE as error:  # cut, or nested too deep
        reason = f"the answer cannot be read: {one_line(str(error))}"
        raise Unusable("unreachable", reason) from error
    if not isinstance(answer, dict):
        raise Unusable("unreachable", "the answer cannot be read: it is no JSON object")
    return answer


def _read_usage(counted: Any) -> Usage | None:
    """What the provider counted, if those are figures that can be."""
    if not isinstance(counted, dict):
        return None
    details = counted.get("prompt_tokens_details")
    usage = Usage(
        input_tokens=counted.get("prompt_tokens"),  # type: ignore[arg-type]
        cached_tokens=(details.get("cached_tokens") or 0) if isinstance(details, dict) else 0,
        output_tokens=counted.get("completion_tokens"),  # type: ignore[arg-type]
    )
    return usage if usage.is_sound else None


def _read_content(content: Any) -> str:
    """The text of a message; some servers send it in parts."""
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") or "" for part in parts if isinstance(part, dict)]
    if not all(isinstance(text, str) for text in texts):
        raise Unusable("empty", "the answer's content is no text")
    return "".join(texts)


def read_models(text: str) -> Sequence[tuple[str, float]]:
    """Names and weights out of "a 3, b 1"; a name alone has weight 1.

    Raises:
        UserError: a weight that is no positive number, or no name at all.
    """
    models: list[tuple[str, float]] = []
    for part in filter(None, (part.split() for part in text.split(","))):
        try:
            weight = float(part[1]) if len(part) == 2 else 1.0 if len(part) == 1 else 0.0
        except ValueError:
            weight = 0.0
        if not 0 < weight < float("inf"):
            raise UserError(
                f"llm.models has {' '.join(part)!r}, expected a name and a weight above 0, such as "
                '"gpt-5.1 3, gpt-5.1-mini 1"; mend it in autoresearch.toml'
            )
        models.append((part[0], weight))
    if not models:
        raise UserError(
            'llm.models is empty, expected a model such as "gpt-5.1"; set it in autoresearch.toml'
        )
    return models
