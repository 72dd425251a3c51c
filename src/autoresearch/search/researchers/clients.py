"""How each coding agent is started without a person, and what its output says.

A client is a command template: words with {placeholders}, environment variables, files for its
fresh home folder, and a reader of its output. None of them is given a way round its own permission
checks; each may edit in its folder and gets as few other rights as its options allow. Checked
against the versions in docs/agents.md.

Placeholders: {prompt} {prompt_file} {folder} {home} {file} {model} {model_name} (what follows the
last slash of the model) {base_url} {usd}; in the word lists for a model or an address only where
agent.model or agent.base_url is set.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from autoresearch.search.spending import Usage
from autoresearch.values.text import figure, whole

_MOST_STARTS = 1000  # lines that may begin the object of an output


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a client said at its end; `usage` is None where it did not say, or not in figures."""

    text: str = ""
    usage: Usage | None = None
    trouble: str = ""
    denied: tuple[str, ...] = ()  # files that its own permission checks kept from it


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One agent's command line."""

    words: tuple[str, ...]
    read: Callable[[str], Answer]
    model_words: tuple[str, ...] = ()  # put in for {model_words}
    url_words: tuple[str, ...] = ()  # put in for {url_words}
    usd_words: tuple[str, ...] = ()  # put in for {usd_words}
    variables: Mapping[str, str] = field(default_factory=dict)
    url_variables: Mapping[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ()  # variables of ours that it gets
    home_files: Mapping[str, str] = field(default_factory=dict)
    own_files: tuple[str, ...] = ()  # beginnings of names that it leaves in its folder for itself
    log_file: str = ""  # in its home: read after its output


def custom_client(command: str) -> Client:
    """The owner's own template; its output is read for JSON lines with usage and cost."""
    return Client(words=tuple(shlex.split(command)), read=read_json_lines)


def _objects(output: str) -> Iterator[dict[str, Any]]:
    """The JSON objects among the lines of an output."""
    for line in output.splitlines():
        if line.lstrip().startswith("{"):
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                yield found


def _last_object(output: str) -> dict[str, Any]:
    """The JSON object that stands last in the output, over several lines or one."""
    decoder = json.JSONDecoder()
    for start in islice(re.finditer(r"^\{", output, re.MULTILINE), _MOST_STARTS):
        try:
            found, _ = decoder.raw_decode(output, start.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return {}


class _NoFigure(ValueError):
    """A count or a cost that cannot be, so that nothing of the bill it stands on is believed."""


def _count(body: Any, *names: str) -> int:
    """The first of some counts that a body has, or 0.

    Raises:
        _NoFigure: it is no whole number of at least 0.
    """
    for name in names:
        value = body.get(name) if isinstance(body, dict) else None
        if value is not None:
            count = whole(value)
            if count is None:
                raise _NoFigure(name)
            if count:
                return count
    return 0


def read_json_lines(output: str) -> Answer:
    """Any client: the last line with `usage` or `total_cost_usd` counts, its `result` is told."""
    answer = Answer(text=output)
    for body in _objects(output):
        if "usage" in body or "total_cost_usd" in body:
            usage = _add([body], _usage_of)
            answer = Answer(text=str(body.get("result") or output), usage=usage)
    return answer


def _usage_of(body: Mapping[str, Any]) -> Usage:
    usage = body.get("usage")
    cached = _count(usage, "cache_read_input_tokens", "cached_input_tokens")
    fresh = _count(usage, "input_tokens", "prompt_tokens")
    created = _count(usage, "cache_creation_input_tokens")
    is_apart = isinstance(usage, dict) and "cache_read_input_tokens" in usage
    cost = body.get("total_cost_usd")
    if not isinstance(usage or {}, dict) or (not usage and cost is None):
        raise _NoFigure("usage")
    if cost is not None and figure(cost) is None:
        raise _NoFigure("total_cost_usd")
    return Usage(
        input_tokens=fresh + (cached + created if is_apart else 0),
        cached_tokens=cached,
        output_tokens=_count(usage, "output_tokens", "completion_tokens"),
        usd=None if cost is None else float(cost),
        num_requests=_count(body, "num_turns") or 1,
    )


def read_claude(output: str) -> Answer:
    """The line of type `result`; is_error tells, not subtype (which says success either way)."""
    answer = Answer(trouble="it ended without a result")
    for body in _objects(output):
        if body.get("type") == "result":
            text = str(body.get("result") or "")
            trouble = ""
            if body.get("is_error"):
                trouble = text or str(body.get("subtype") or "an error")
            denied = _denied_files(body.get("permission_denials"))
            usage = _add([body], _usage_of)
            answer = Answer(text=text, usage=usage, trouble=trouble, denied=denied)
    return answer


def _denied_files(denials: Any) -> tuple[str, ...]:
    inputs = [
        each.get("tool_input")
        for each in (denials if isinstance(denials, list) else ())
        if isinstance(each, dict)
    ]
    files = [each.get("file_path") for each in inputs if isinstance(each, dict)]
    return tuple(str(name) for name in files if name)


def read_codex(output: str) -> Answer:
    """Lines of events: the last message, the usage of all turns, the last error."""
    text = trouble = ""
    turns = []
    has_begun = False
    for body in _objects(output):
        item = body.get("item")
        has_begun |= isinstance(item, dict) and item.get("type") != "error"
        if isinstance(item, dict) and item.get("type") == "agent_message":
            text = str(item.get("text") or "")
        if body.get("type") == "turn.completed":
            turns.append(body)
            trouble = ""
        elif body.get("type") in ("error", "turn.failed"):
            error = body.get("error")
            said = error.get("message") if isinstance(error, dict) else body.get("message")
            trouble = str(said or "an error")
    is_free = bool(trouble) and not has_begun and not turns
    usage = Usage() if is_free else _add(turns, _usage_of)
    return Answer(text=text, usage=usage, trouble=trouble)


def read_gemini(output: str) -> Answer:
    """One object at the end, with the tokens of every model that was asked."""
    body = _last_object(output)
    stats = body.get("stats")
    models = stats.get("models") if isinstance(stats, dict) else None
    usage = _add(models.values() if isinstance(models, dict) else (), _usage_of_gemini)
    error = body.get("error")
    said = error.get("message") if isinstance(error, dict) else error
    trouble = str(said) if said else "" if body else "it ended without a result"
    return Answer(text=str(body.get("response") or ""), usage=usage, trouble=trouble)


def _usage_of_gemini(model: Any) -> Usage:
    tokens = model.get("tokens") if isinstance(model, dict) else None
    api = model.get("api") if isinstance(model, dict) else None
    return Usage(
        input_tokens=_count(tokens, "prompt", "input"),
        cached_tokens=_count(tokens, "cached"),
        output_tokens=_count(tokens, "candidates") + _count(tokens, "thoughts"),
        num_requests=_count(api, "totalRequests") or 1,
    )


def read_opencode(output: str) -> Answer:
    """Lines of events: texts, the tokens of each finished step, errors."""
    texts, steps, trouble = [], [], ""
    for body in _objects(output):
        part = body.get("part")
        if body.get("type") == "text" and isinstance(part, dict):
            texts.append(str(part.get("text") or ""))
        elif body.get("type") == "step_finish" and isinstance(part, dict):
            steps.append(part.get("tokens"))
        elif body.get("type") == "error":
            trouble = str(body.get("error") or "an error")
    return Answer(text="\n".join(texts), usage=_add(steps, _usage_of_opencode), trouble=trouble)


def _usage_of_opencode(tokens: Any) -> Usage:
    cache = tokens.get("cache") if isinstance(tokens, dict) else None
    cached = _count(cache, "read")
    return Usage(
        input_tokens=_count(tokens, "input") + cached + _count(cache, "write"),
        cached_tokens=cached,
        output_tokens=_count(tokens, "output") + _count(tokens, "reasoning"),
    )


def read_aider(output: str) -> Answer:
    """Its log of events (--analytics-log), which stays on the machine, has the exact tokens."""
    sent = [
        body["properties"]
        for body in _objects(output)
        if body.get("event") == "message_send" and isinstance(body.get("properties"), dict)
    ]
    return Answer(text=output, usage=_add(sent, _usage_of_aider))


def _usage_of_aider(facts: Any) -> Usage:
    return Usage(
        input_tokens=_count(facts, "prompt_tokens"),
        output_tokens=_count(facts, "completion_tokens"),
    )


def _add(bodies: Iterable[Any], read: Callable[[Any], Usage]) -> Usage | None:
    """What the bodies used together; None where there are none, or one has no figures."""
    try:
        usages = [read(body) for body in bodies]
    except _NoFigure:
        return None
    if len(usages) < 2:
        return usages[0] if usages else None
    return Usage(
        input_tokens=sum(usage.input_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
        output_tokens=sum(usage.output_tokens for usage in usages),
        num_requests=sum(usage.num_requests for usage in usages),
    )


_OPENCODE = {
    "$schema": "https://opencode.ai/config.json",
    "autoupdate": False,
    "share": "disabled",
    "permission": {
        "*": "deny",
        "read": "allow",
        "edit": "allow",
        "glob": "allow",
        "grep": "allow",
        "list": "allow",
    },
}
_OPENCODE_URL = {
    **_OPENCODE,
    "provider": {
        "own": {
            "npm": "@ai-sdk/openai-compatible",
            "name": "own",
            "options": {"baseURL": "{base_url}", "apiKey": "{env:OPENAI_API_KEY}"},
            "models": {"{model_name}": {"name": "{model_name}", "tool_call": True}},
        }
    },
}
_GEMINI = {
    "security": {"auth": {"selectedType": "gemini-api-key"}},
    "privacy": {"usageStatisticsEnabled": False},
    "telemetry": {"enabled": False},
    "general": {"disableAutoUpdate": True, "enableAutoUpdate": False},
}
_CODEX_URL = (
    "-c",
    "model_provider=own",
    "-c",
    'model_providers.own={name="own",base_url="{base_url}",env_key="OPENAI_API_KEY",'
    'wire_api="responses",request_max_retries=6,stream_max_retries=6}',
)

CLIENTS: dict[str, Client] = {
    "claude": Client(
        words=(
            "claude", "--bare", "-p", "{prompt}", "--output-format", "stream-json", "--verbose",
            "--max-turns", "60", "{usd_words}", "{model_words}", "--permission-mode", "default",
            "--tools", "Read,Edit", "--allowedTools", "Read,Edit(./train.py)",
            "--no-session-persistence",
        ),
        read=read_claude,
        model_words=("--model", "{model}"),
        usd_words=("--max-budget-usd", "{usd}"),
        variables={"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"},
        url_variables={"ANTHROPIC_BASE_URL": "{base_url}"},
        keys=("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
    ),
    "codex": Client(
        words=(
            "codex", "exec", "--json", "--ephemeral", "--skip-git-repo-check", "-C", "{folder}",
            "-s", "workspace-write", "{model_words}", "{url_words}", "{prompt}",
        ),
        read=read_codex,
        model_words=("-m", "{model}"),
        url_words=_CODEX_URL,
        variables={"CODEX_HOME": "{home}/.codex"},
        keys=("CODEX_API_KEY", "OPENAI_API_KEY"),
        home_files={".codex/config.toml": "check_for_update_on_startup = false\n"},
    ),
    "gemini": Client(
        words=(
            "gemini", "--skip-trust", "{model_words}", "--approval-mode", "auto_edit",
            "-o", "json", "-p", "{prompt}",
        ),
        read=read_gemini,
        model_words=("-m", "{model}"),
        url_variables={"GOOGLE_GEMINI_BASE_URL": "{base_url}"},
        keys=("GEMINI_API_KEY",),
        home_files={".gemini/settings.json": json.dumps(_GEMINI)},
        own_files=(".gemini",),
    ),
    "opencode": Client(
        words=(
            "opencode", "run", "--format", "json", "--title", "train.py", "{model_words}",
            "{prompt}",
        ),
        read=read_opencode,
        model_words=("-m", "{model}"),
        url_words=(),
        variables={"OPENCODE_CONFIG_CONTENT": json.dumps(_OPENCODE)},
        url_variables={
            "OPENCODE_CONFIG_CONTENT": json.dumps(_OPENCODE_URL),
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
        },
        keys=("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "OPENROUTER_API_KEY"),
        own_files=(".opencode",),
    ),
    "aider": Client(
        words=(
            "aider", "{model_words}", "--yes-always", "--no-git", "--no-stream", "--no-pretty",
            "--no-fancy-input", "--no-auto-lint", "--no-suggest-shell-commands",
            "--no-detect-urls", "--no-check-update", "--no-show-release-notes",
            "--no-show-model-warnings", "--disable-playwright", "--map-tokens", "0",
            "--edit-format", "diff", "--analytics-disable", "--analytics-log",
            "{home}/events.jsonl", "--message-file", "{prompt_file}", "{file}",
        ),
        read=read_aider,
        model_words=("--model", "{model}"),
        variables={"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        home_files={".aider/caches/model_prices_and_context_window.json": '{"none": {}}'},
        url_variables={"OPENAI_API_BASE": "{base_url}"},
        keys=("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "OPENROUTER_API_KEY"),
        own_files=(".aider",),
        log_file="events.jsonl",
    ),
}  # fmt: skip
