"""The llm researcher before it asks anybody: its models, its key, its price, its refusals."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from askers import HashedLlm, make_desk

from autoresearch.search.briefing import write_briefing
from autoresearch.search.history import History
from autoresearch.search.researchers import Exhausted, Unusable, ask
from autoresearch.search.researchers import llm as llm_module
from autoresearch.search.researchers.llm import LlmResearcher, read_models
from autoresearch.search.spending import add_up
from autoresearch.values.errors import UserError

SOURCE = "RATE = 0.02  # step size [0.001, 1.0] log\n"


def test_models_and_weights_are_read() -> None:
    """Names may hold colons and slashes; a name alone has weight 1."""
    assert read_models("a/b:8b 3, c") == [("a/b:8b", 3.0), ("c", 1.0)]


@pytest.mark.parametrize("text", ["a 0", "a -1", "a b", "a 1 2", "a nan", "a inf"])
def test_odd_weights_are_named(text: str) -> None:
    """The message shows how it should look."""
    with pytest.raises(UserError, match=r"expected a name and a weight above 0, such as"):
        read_models(text)
    with pytest.raises(UserError, match=r"llm.models is empty"):
        read_models(" , ")


def test_models_are_drawn_by_weight_and_a_retry_keeps_its_model() -> None:
    """The draw hangs on seed and turn alone."""
    researcher = HashedLlm(make_desk(llm={"models": "a 3, b 1"}), seed=5)
    names = [researcher._pick(History(refusals=(None,) * n)) for n in range(80)]  # type: ignore[arg-type]
    assert 45 <= names.count("a") <= 75
    retry = History(refusals=(None,) * 8, refusals_in_a_row=1)  # type: ignore[arg-type]
    assert researcher._pick(retry) == names[7]


def test_a_missing_key_is_told_before_the_night() -> None:
    """With the command that sets it; a server of one's own needs none."""
    desk = dataclasses.replace(make_desk(), environment={})
    with pytest.raises(UserError, match=r"OPENAI_API_KEY is empty.*export OPENAI_API_KEY="):
        LlmResearcher(desk)
    assert LlmResearcher(make_desk(llm={"key_variable": ""})).name == "llm"


def test_a_cap_in_dollars_needs_a_price() -> None:
    """The owner's price will do, or no cap."""
    spending: dict[str, Any] = {"session_usd": 1.0}
    llm = {"models": "my-own/model"}
    with pytest.raises(UserError, match=r"no price is known for the model 'my-own/model'"):
        LlmResearcher(make_desk(llm=llm, spending=spending))
    priced = {**spending, "input_usd": 1.0}
    assert LlmResearcher(make_desk(llm=llm, spending=priced)).name == "llm"


class Leaky(HashedLlm):
    """A model that tells the key it has heard of."""

    def _ask(self, model: str, prompt: str, turn: int) -> str:
        return "DESCRIPTION: x\n```python\nKEY = 'sk-a-stub-key'\n```\n"


def test_an_answer_with_a_key_is_refused() -> None:
    """It reaches neither git nor the ledger."""
    with pytest.raises(Unusable, match="must not get into git") as caught:
        Leaky(make_desk()).propose(History(), "base", SOURCE)
    assert caught.value.kind == "secret"
    assert "sk-a-stub-key" not in caught.value.edit


def test_a_key_counts_by_its_setting_whatever_its_name() -> None:
    """That of llm.key_variable, and what agent.variables pass on; other variables are no keys."""
    desk = make_desk(llm={"key_variable": "MYCRED"}, agent={"variables": "LOGIN, ABSENT"})
    outer = {
        **desk.environment,
        "MYCRED": "opensesame",
        "LOGIN": "hocus pocus",
        "OTHER": "a word!!",
    }
    researcher = LlmResearcher(dataclasses.replace(desk, environment=outer))
    assert set(researcher.secrets) == {"sk-a-stub-key", "opensesame", "hocus pocus"}
    briefing = write_briefing(
        dataclasses.replace(desk, environment=outer),
        History(),
        "A = 'opensesame'  # [1, 2]\n",
        "hocus pocus",
    )
    assert "opensesame" not in briefing
    assert "hocus pocus" not in briefing


@contextmanager
def serve(body: bytes, status: int = 200, **headers: str) -> Iterator[str]:
    """A server that gives every request the same answer; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask_server(url: str, **llm: Any) -> tuple[Unusable, Any]:
    """How a request to a server was refused, and what it is billed for."""
    settings = {"base_url": url, "models": "m", "retries": 0, "timeout_s": 20.0, **llm}
    desk = make_desk(llm=settings, spending={"input_usd": 3.0, "output_usd": 15.0,
                                             "session_usd": 0.0, "proposal_usd": 0.0})  # fmt: skip
    with pytest.raises(Unusable) as caught:
        ask(LlmResearcher(desk), History(), SOURCE)
    return caught.value, add_up(desk.ledger.history().calls)


def answer(**changes: Any) -> bytes:
    """A chat completion with some parts replaced."""
    choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    return json.dumps({"choices": [choice], "usage": usage, **changes}).encode()


def message(**parts: Any) -> bytes:
    """A chat completion with a message of these parts."""
    return answer(choices=[{"finish_reason": "stop", "message": parts}])


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"[" * 200_000, "unreachable", "cannot be read"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "unreachable", "cannot be read"),
        (b'{"choices": [', "unreachable", "cannot be read"),
        (b"7", "unreachable", "no JSON object"),
        (answer(choices="abc"), "empty", "no choice"),
        (answer(choices={"a": 1}), "empty", "no choice"),
        (answer(choices=[None]), "empty", "no choice"),
        (answer(choices=[{}]), "empty", "no choice"),
        (answer(choices=[{"message": "hi"}]), "empty", "no choice"),
        (message(content=5), "empty", "no text"),
        (message(content=[{"text": 5}]), "empty", "no text"),
        (message(content=[{"type": "text", "text": "just"}, "odd"]), "no_edit", "0 ```python"),
        (message(refusal=5), "refusal", "declined: 5"),
    ],
)
def test_an_answer_of_any_shape_is_told_in_words(body: bytes, kind: str, words: str) -> None:
    """No answer of a server ends the loop."""
    pytest.importorskip("openai")
    with serve(body) as url:
        failure, bill = ask_server(url)
    assert failure.kind == kind
    assert words in str(failure)
    assert bill.num_calls == 1


@pytest.mark.parametrize(
    "usage",
    [
        [1],
        {},
        {"prompt_tokens": "abc", "completion_tokens": 1},
        {"prompt_tokens": -1000, "completion_tokens": -1000},
        {"prompt_tokens": 10**400, "completion_tokens": 1},
        {"prompt_tokens": float("nan"), "completion_tokens": 1},
        {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 9}},
    ],
)
def test_a_count_that_cannot_be_leaves_the_request_at_its_reservation(usage: Any) -> None:
    """The answer counts all the same."""
    pytest.importorskip("openai")
    with serve(answer(usage=usage)) as url:
        failure, bill = ask_server(url)
    assert failure.kind == "no_edit"
    assert bill.num_unsettled == 1
    assert bill.usd > 0


def test_a_redirect_is_not_followed() -> None:
    """It is told in words, costs nothing, and the key goes nowhere else."""
    pytest.importorskip("openai")
    with serve(b"", 307, location="/else?key=sk-a-stub-key") as url:
        failure, bill = ask_server(url)
    assert failure.kind == "unreachable"
    assert "answers 307, go to /else?key=[redacted], which is not followed; set" in str(failure)
    assert (bill.num_calls, bill.usd) == (1, 0.0)


def test_an_answer_that_goes_on_and_on_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time limit for the whole of it, and after so many bytes; errors too."""
    pytest.importorskip("openai")
    monkeypatch.setattr(llm_module, "_MOST_BODY_BYTES", 1000)
    for status in (200, 400):
        with serve(b" " * 2000 + answer(), status) as url:
            failure, _ = ask_server(url)
        assert "the answer has more than 1000 bytes" in str(failure)
    clock = iter([0.0, 21.0])
    monkeypatch.setattr(llm_module, "monotonic", lambda: next(clock, 21.0))
    with serve(answer()) as url:
        failure, bill = ask_server(url)
    assert (failure.kind, str(failure)) == ("hang", "no whole answer in 20 s")
    assert bill.num_unsettled == 1


def drip_headers(listener: socket.socket) -> None:
    """Answer whoever comes with a header that never ends."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with contextlib.suppress(OSError), connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
                while True:
                    connection.sendall(b" ")
                    time.sleep(0.02)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("retries", [0, 2])
def test_a_header_that_never_ends_is_given_up(
    monkeypatch: pytest.MonkeyPatch, retries: int
) -> None:
    """Every read brings a byte in time, the answer never comes; it is not asked for again."""
    pytest.importorskip("openai")
    monkeypatch.setattr(llm_module, "_GRACE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip_headers, args=(listener,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        failure, bill = ask_server(url, timeout_s=0.4, retries=retries)
        with contextlib.suppress(OSError):  # not everywhere does that wake who listens
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    assert (failure.kind, str(failure)) == ("hang", "no whole answer in 0.4 s")
    assert (bill.num_calls, bill.num_unsettled) == (1, 1)


def test_a_packed_answer_is_not_unpacked() -> None:
    """A few bytes could become gigabytes; we asked for none."""
    pytest.importorskip("openai")
    with serve(b"x", content_encoding="gzip") as url:
        failure, _ = ask_server(url)
    assert "it is packed (gzip)" in str(failure)


class Failing(HashedLlm):
    """Its error is one that nobody foresaw."""

    error: BaseException

    def _ask(self, model: str, prompt: str, turn: int) -> str:
        raise self.error


def test_an_error_that_nobody_foresaw_is_a_refusal() -> None:
    """Where a model is asked, without its key; what is for a person still ends the session."""
    researcher = Failing(make_desk())
    researcher.error = MemoryError("no room for sk-a-stub-key")
    with pytest.raises(Unusable, match=r"failed: MemoryError: no room for \[redacted\]") as caught:
        ask(researcher, History(), SOURCE)
    assert caught.value.kind == "broken"
    for error in (UserError("x"), Exhausted("x"), KeyboardInterrupt()):
        researcher.error = error
        with pytest.raises(type(error)):
            ask(researcher, History(), SOURCE)
    del researcher.secrets  # as one that asks nobody
    researcher.error = MemoryError()
    with pytest.raises(MemoryError):
        ask(researcher, History(), SOURCE)
