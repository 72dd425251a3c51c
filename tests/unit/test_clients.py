"""What each client prints is read as it was seen in the versions of docs/agents.md."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.search.researchers.clients import (
    CLIENTS,
    Answer,
    custom_client,
    read_aider,
    read_claude,
    read_codex,
    read_gemini,
    read_json_lines,
    read_opencode,
)
from autoresearch.search.spending import Usage

CLAUDE = {
    "type": "result", "subtype": "success", "is_error": False, "num_turns": 3,
    "result": "DESCRIPTION: wider", "total_cost_usd": 0.012333,
    "usage": {"input_tokens": 3000, "cache_creation_input_tokens": 20,
              "cache_read_input_tokens": 700, "output_tokens": 77},
}  # fmt: skip
CODEX = [
    {"type": "thread.started"},
    {"type": "item.completed", "item": {"type": "agent_message", "text": "DESCRIPTION: wider"}},
    {"type": "turn.completed", "usage": {"input_tokens": 3720, "cached_input_tokens": 700,
                                         "output_tokens": 77}},
]  # fmt: skip
GEMINI = {
    "response": "DESCRIPTION: wider",
    "stats": {"models": {"gemini-2.5-flash": {
        "api": {"totalRequests": 3},
        "tokens": {"prompt": 3720, "candidates": 70, "thoughts": 7, "cached": 700}}}},
}  # fmt: skip
OPENCODE = [
    {"type": "text", "part": {"type": "text", "text": "DESCRIPTION: wider"}},
    {"type": "step_finish", "part": {"tokens": {"input": 3000, "output": 70, "reasoning": 7,
                                                "cache": {"read": 700, "write": 20}}}},
]  # fmt: skip
AIDER = [
    {"event": "launched", "properties": {}},
    {"event": "message_send", "properties": {"prompt_tokens": 3720, "completion_tokens": 77}},
]
READERS: list[Callable[[str], Answer]] = [
    read_claude, read_codex, read_gemini, read_opencode, read_aider, read_json_lines,
]  # fmt: skip


def lines(bodies: list[dict[str, object]]) -> str:
    """An output with noise around its JSON."""
    return "warning: {odd\n" + "\n".join(map(json.dumps, bodies)) + "\n"


@pytest.mark.parametrize(
    ("read", "output", "requests", "cached"),
    [
        (read_claude, lines([CLAUDE]), 3, 700),
        (read_codex, lines(CODEX), 1, 700),
        (read_gemini, "Loaded.\n" + json.dumps(GEMINI, indent=2), 3, 700),
        (read_opencode, lines(OPENCODE), 1, 700),
        (read_aider, "DESCRIPTION: wider\n" + lines(AIDER), 1, 0),
    ],
)
def test_usage_and_last_words_are_found(
    read: Callable[[str], Answer], output: str, requests: int, cached: int
) -> None:
    """Tokens read (cached ones among them) and written, requests, the text."""
    answer = read(output)
    assert answer.usage is not None
    assert answer.usage.input_tokens == 3720
    assert answer.usage.output_tokens == 77
    assert (answer.usage.num_requests, answer.usage.cached_tokens) == (requests, cached)
    assert "DESCRIPTION: wider" in answer.text
    assert answer.trouble == ""


def test_claude_says_success_even_where_it_failed() -> None:
    """is_error tells; its price is taken as it stands."""
    body = {**CLAUDE, "is_error": True, "result": "API Error: Connection error."}
    assert read_claude(lines([body])).trouble == "API Error: Connection error."
    usage = read_claude(lines([CLAUDE])).usage
    assert usage is not None
    assert usage.usd == 0.012333
    assert read_claude("").usage is None
    assert "without a result" in read_claude("").trouble


def test_what_claude_was_denied_is_named() -> None:
    """Its own checks keep it from other files; we say which."""
    denials = [{"tool_name": "Edit", "tool_input": {"file_path": "/w/program.md"}}, {}]
    assert read_claude(lines([{**CLAUDE, "permission_denials": denials}])).denied == (
        "/w/program.md",
    )


def test_a_codex_that_never_reached_its_model_costs_nothing() -> None:
    """One that had begun may have: its cost stays unknown."""
    failed = {"type": "turn.failed", "error": {"message": "429 too many"}}
    answer = read_codex(lines([failed]))
    assert (answer.usage, answer.trouble) == (Usage(), "429 too many")
    assert read_codex(lines([{"item": {"type": "reasoning"}}, failed])).usage is None


@given(st.text(max_size=120), st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: st.dictionaries(
        st.sampled_from(["type", "item", "usage", "part", "stats", "models", "tokens", "error",
                         "properties", "event", "result", "total_cost_usd"]), inner, max_size=4),
    max_leaves=8,
))  # fmt: skip
def test_no_output_upsets_a_reader(text: str, body: object) -> None:
    """What a client prints may be anything."""
    for read in READERS:
        for output in (text, json.dumps(body), f"{text}\n{json.dumps(body)}"):
            assert isinstance(read(output), Answer)


@pytest.mark.parametrize(
    "told",
    [
        '{"total_cost_usd": NaN}',
        '{"total_cost_usd": -100.0, "usage": {"input_tokens": 1}}',
        '{"total_cost_usd": 1' + "0" * 400 + "}",
        '{"total_cost_usd": "1"}',
        '{"usage": {"input_tokens": -1, "output_tokens": 5}}',
        '{"usage": {"input_tokens": 1.5}}',
        '{"usage": [1]}',
        '{"usage": {}}',
    ],
)
def test_figures_that_cannot_be_are_no_figures(told: str) -> None:
    """A visit that tells them stands at its reservation, whatever else it tells."""
    assert read_json_lines(told).usage is None
    result = {**json.loads(told), "type": "result"}
    assert read_claude(json.dumps(result)).usage is None
    turn = {**json.loads(told), "type": "turn.completed"}
    assert read_codex(lines([*CODEX, turn])).usage is None
    assert read_opencode(lines([*OPENCODE, {"type": "step_finish", "part": {
        "tokens": {"input": -1}}}])).usage is None  # fmt: skip


@pytest.mark.parametrize("output", ['{"a":' * 100_000, '{"a":\n' * 100_000])
def test_objects_in_objects_without_end_are_no_answer(output: str) -> None:
    """On one line or on many."""
    for read in READERS:
        assert read(output).usage is None


def test_no_client_gets_a_way_round_its_permissions() -> None:
    """No word that skips checks, and no shell where edits are enough."""
    for name, client in CLIENTS.items():
        words = " ".join([*client.words, *client.variables.values()])
        for forbidden in ("dangerously", "yolo", "bypass", "--auto ", "full-access"):
            assert forbidden not in words, name
    assert custom_client("mine --ask '{prompt}'").words == ("mine", "--ask", "{prompt}")
