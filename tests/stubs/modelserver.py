"""A model on the loopback address that follows a script: python modelserver.py PORT FILE IDEA...

It answers /v1/messages, /v1/responses, /v1/chat/completions and Gemini's :generateContent and
:streamGenerateContent, streamed or not, so that every client can be driven without a network or a
key. Each conversation that asks for an edit of train.py takes the next idea of the script (the last
one stays): good, structure, inject, outside, syntax, empty, hang, storm, cut, repeat, slow; or it
takes the first NAME=VALUE of the script that the request does not mention, as one who reads what
was tried. It counts requests and tokens itself, as a provider would: an answer that was sent
counts, an error does not.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WANTS_EDIT = ("edit the file train.py", "Answer with one line `DESCRIPTION:")
NUM_STORM = 2
SLOW_S = 0.5
EDIT_TOOLS = ("Edit", "edit", "replace")
READ_TOOLS = ("Read", "read", "read_file")
SHELL_TOOLS = ("shell_command", "exec_command", "shell")


@dataclass
class Tally:
    """What the server counted; `answered` leaves out errors and cut answers."""

    requests: int = 0
    answered: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cut: int = 0
    ideas: list[str] = field(default_factory=list)


@dataclass
class Turn:
    """One answer: a text, or a call of a tool."""

    text: str = ""
    tool: str = ""
    arguments: dict[str, Any] | str = field(default_factory=dict)


class Cut(Exception):
    """The connection shall break."""


class Storm(Exception):
    """The server is too busy."""


class ModelServer:
    """`with ModelServer(["good", ...]) as server:` serves at `server.url` until the block ends."""

    def __init__(
        self, script: list[str], constant: str = "GAIN", port: int = 0, file: Path | None = None
    ) -> None:
        self.script = script
        self.constant = constant
        self.injection = ""
        self.file = file  # the tally is written here after every request
        self.tally = Tally()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.is_over = threading.Event()
        self._left = NUM_STORM
        self._was_cut = False
        handler = type("Handler", (_Handler,), {"model": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> ModelServer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def decide(self, text: str, stage: int, tools: list[str]) -> Turn:
        """The answer to a request whose conversation has seen `stage` results of tools."""
        if not any(words in text for words in WANTS_EDIT):
            return Turn(text="A title")
        with self.lock:
            number = len(self.tally.ideas)
            if stage == 0:
                untried = [i for i in self.script if "=" in i and i not in text]
                idea = (untried or self.script[number:] or self.script[-1:])[0]
                if idea == "storm" and self._left:
                    self._left -= 1
                    raise Storm
                if idea == "cut" and not self._was_cut:
                    self._was_cut = True
                    raise Cut
                self._left, self._was_cut = NUM_STORM, False
                self.tally.ideas.append(idea)
            else:
                number -= 1
                idea = self.tally.ideas[-1]
        if idea == "hang":
            self.is_over.wait(600)
            raise Cut
        if idea == "slow" and stage == 0:
            self.is_over.wait(SLOW_S)
        return self._act(idea, number, text, stage, tools)

    def _act(self, idea: str, number: int, text: str, stage: int, tools: list[str]) -> Turn:
        done = Turn(text=f"DESCRIPTION: idea {number}, {idea}")
        if idea == "empty":
            return Turn(text="" if not tools else "I would rather not.")
        old, new = self._edit(idea, number, text)
        name = "program.md" if idea == "outside" else "train.py"
        folder = re.search(r"(/[\w./-]*autoresearch-agent-[\w-]+/work)", text)
        path = f"{folder[1]}/{name}" if folder else name
        if idea == "outside":
            old, new = "Keep the scorer as it is.", "Let the scorer be."
        steps = list(_steps(tools, path, name, old, new))
        if steps:
            return steps[stage] if stage < len(steps) else done
        aider = f"{name}\n" if "aider" in text or "*SEARCH/REPLACE*" in text else ""
        fence = "```" if aider else ""
        block = (
            f"{aider}{fence}{'python' if fence else ''}\n<<<<<<< SEARCH\n{old}\n=======\n{new}\n"
        )
        return Turn(text=f"{done.text}\n\n{block}>>>>>>> REPLACE\n{fence}\n")

    def _edit(self, idea: str, number: int, text: str) -> tuple[str, str]:
        """The champion's line of the constant, and what takes its place."""
        name, _, given = idea.partition("=") if "=" in idea else (self.constant, "", "")
        found = re.search(rf"^{name} = .*$", text, re.MULTILINE)
        old = found[0] if found else f"{name} = missing"
        comment = "  #" + old.partition("#")[2] if "#" in old else ""
        value = 0.3 if idea == "repeat" else round(0.301 + number / 1000, 3)
        new = f"{name} = {given or value}{comment}"
        if idea == "syntax":
            new = f"{self.constant} = = ("
        if idea == "inject":
            new = f"{old}\nprint({self.injection!r}, flush=True)\nraise RuntimeError('no luck')"
        if idea == "structure":
            new = f"{old}\nTRICK = {number}"
        return old, new


def _steps(tools: list[str], path: str, name: str, old: str, new: str) -> Iterator[Turn]:
    """Calls of the tools that the client offers, one a stage."""
    read = next((tool for tool in READ_TOOLS if tool in tools), "")
    edit = next((tool for tool in EDIT_TOOLS if tool in tools), "")
    shell = next((tool for tool in SHELL_TOOLS if tool in tools), "")
    if edit:
        key = "filePath" if edit == "edit" else "file_path"
        words = ("oldString", "newString") if edit == "edit" else ("old_string", "new_string")
        if read:
            yield Turn(tool=read, arguments={key: path})
        arguments = {key: path, words[0]: old, words[1]: new}
        if edit == "replace":
            arguments["instruction"] = "change one constant"
        yield Turn(tool=edit, arguments=arguments)
        return
    lines = "".join(f"-{line}\n" for line in old.split("\n"))
    lines += "".join(f"+{line}\n" for line in new.split("\n"))
    patch = f"*** Begin Patch\n*** Update File: {name}\n@@\n{lines}*** End Patch\n"
    if "apply_patch" in tools:
        yield Turn(tool="apply_patch", arguments=patch)
    elif shell:
        command = f"apply_patch <<'PATCH'\n{patch}PATCH"
        if shell == "shell":
            yield Turn(tool=shell, arguments={"command": ["bash", "-lc", command]})
        else:
            key = "cmd" if shell == "exec_command" else "command"
            yield Turn(tool=shell, arguments={key: command})


def _texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


class _Handler(BaseHTTPRequestHandler):
    model: ModelServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Lists of models and the like."""
        self._send_json(200, {"data": [], "models": []})

    def do_POST(self) -> None:
        """One request for an answer."""
        server = self.model
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = self.path.partition("?")[0]
        try:
            body = json.loads(raw or b"{}")
        except ValueError:  # its sender died while it was sending
            self.close_connection = True
            return
        form = next((form for end, form in FORMS.items() if path.endswith(end)), None)
        if form is None:
            self._send_json(200, {"input_tokens": 1, "totalTokens": 1})
            return
        with server.lock:
            server.tally.requests += 1
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
        form(self, body, len(raw) // 4 + 1)
        if server.file:
            with server.lock:
                server.file.write_text(json.dumps(asdict(server.tally)))

    def answer(
        self, body: Any, stage: int, tools: list[str], tokens: int,
        encode: Callable[[Turn, int, int], tuple[str, bytes]],
    ) -> None:  # fmt: skip
        """Decide, count, send; or break off as the script says."""
        server = self.model
        try:
            turn = server.decide("\n".join(_texts(body)), stage, tools)
        except Storm:
            self._send_json(429, {"error": {"type": "rate_limit_error", "message": "slow down"}})
            return
        except Cut:
            self.close_connection = True
            with server.lock:
                server.tally.cut += 1
            with contextlib.suppress(OSError):  # the other side may have gone first
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", "1000")
                self.end_headers()
                self.wfile.write(b'{"id": "cu')
            return
        written = len(turn.text or json.dumps(turn.arguments)) // 4 + 1
        with server.lock:
            server.tally.answered += 1
            server.tally.input_tokens += tokens
            server.tally.output_tokens += written
        kind, payload = encode(turn, tokens, written)
        try:
            self._send(200, kind, payload)
        except OSError:
            self.close_connection = True

    def _send_json(self, status: int, body: Any) -> None:
        self._send(status, "application/json", json.dumps(body).encode())

    def _send(self, status: int, kind: str, payload: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(payload)))
        if status == 429:
            self.send_header("retry-after-ms", "20")
        self.end_headers()
        self.wfile.write(payload)


def _events(*events: tuple[str, Any]) -> tuple[str, bytes]:
    lines = [f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events]
    return "text/event-stream", "".join(lines).encode()


def _messages(handler: _Handler, body: Any, tokens: int) -> None:
    """Anthropic's."""
    blocks = [
        b
        for message in body.get("messages", [])
        for b in (message["content"] if isinstance(message["content"], list) else [])
    ]
    stage = sum(1 for block in blocks if block.get("type") == "tool_result")
    tools = [tool.get("name", "") for tool in body.get("tools", [])]

    def encode(turn: Turn, read: int, written: int) -> tuple[str, bytes]:
        usage = {"input_tokens": read, "output_tokens": written}
        block: dict[str, Any] = {"type": "text", "text": turn.text}
        if turn.tool:
            block = {"type": "tool_use", "id": f"toolu_{stage:04d}", "name": turn.tool,
                     "input": turn.arguments}  # fmt: skip
        reason = "tool_use" if turn.tool else "end_turn"
        message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [block],
                   "model": body.get("model"), "stop_reason": reason, "stop_sequence": None,
                   "usage": usage}  # fmt: skip
        if not body.get("stream"):
            return "application/json", json.dumps(message).encode()
        empty = {**block, "input": {}} if turn.tool else {**block, "text": ""}
        delta = (
            {"type": "input_json_delta", "partial_json": json.dumps(turn.arguments)}
            if turn.tool
            else {"type": "text_delta", "text": turn.text}
        )
        start = {**message, "content": [], "stop_reason": None,
                 "usage": {"input_tokens": read, "output_tokens": 1}}  # fmt: skip
        return _events(
            ("message_start", {"type": "message_start", "message": start}),
            ("content_block_start",
             {"type": "content_block_start", "index": 0, "content_block": empty}),
            ("content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}),
            ("content_block_stop", {"type": "content_block_stop", "index": 0}),
            ("message_delta", {"type": "message_delta", "usage": {"output_tokens": written},
                               "delta": {"stop_reason": reason, "stop_sequence": None}}),
            ("message_stop", {"type": "message_stop"}),
        )  # fmt: skip

    handler.answer(body, stage, tools, tokens, encode)


def _responses(handler: _Handler, body: Any, tokens: int) -> None:
    """OpenAI's newer form, which Codex speaks."""
    items = body.get("input", [])
    items = items if isinstance(items, list) else []
    stage = sum(1 for item in items if str(item.get("type", "")).endswith("call_output"))
    custom = {tool.get("name") for tool in body.get("tools", []) if tool.get("type") == "custom"}
    tools = [tool.get("name") or "" for tool in body.get("tools", [])]
    spaces = {  # the tools of MCP servers, under the names that other clients give them
        f"{tool['name']}__{each['name']}": (tool["name"], each["name"])
        for tool in body.get("tools", [])
        if tool.get("type") == "namespace"
        for each in tool["tools"]
    }

    def encode(turn: Turn, read: int, written: int) -> tuple[str, bytes]:
        item: dict[str, Any] = {"type": "message", "id": "msg_1", "role": "assistant",
                                "status": "completed", "content": [
                                    {"type": "output_text", "text": turn.text, "annotations": []}
                                ]}  # fmt: skip
        if turn.tool in custom:
            item = {"type": "custom_tool_call", "id": "ctc_1", "call_id": f"call_{stage}",
                    "name": turn.tool, "input": turn.arguments}  # fmt: skip
        elif turn.tool:
            item = {"type": "function_call", "id": "fc_1", "call_id": f"call_{stage}",
                    "name": turn.tool, "arguments": json.dumps(turn.arguments)}  # fmt: skip
        if turn.tool in spaces:
            item["namespace"], item["name"] = spaces[turn.tool]
        response = {
            "id": "resp_1", "object": "response", "created_at": 0, "status": "completed",
            "model": body.get("model"), "output": [item],
            "usage": {"input_tokens": read, "input_tokens_details": {"cached_tokens": 0},
                      "output_tokens": written, "output_tokens_details": {"reasoning_tokens": 0},
                      "total_tokens": read + written},
        }  # fmt: skip
        if not body.get("stream"):
            return "application/json", json.dumps(response).encode()
        begun = {**response, "status": "in_progress", "output": [], "usage": None}
        return _events(
            ("response.created", {"type": "response.created", "response": begun}),
            ("response.output_item.added",
             {"type": "response.output_item.added", "output_index": 0, "item": item}),
            ("response.output_item.done",
             {"type": "response.output_item.done", "output_index": 0, "item": item}),
            ("response.completed", {"type": "response.completed", "response": response}),
        )  # fmt: skip

    handler.answer(body, stage, [*tools, *spaces], tokens, encode)


def _chat(handler: _Handler, body: Any, tokens: int) -> None:
    """OpenAI's older form, which everybody speaks."""
    stage = sum(1 for message in body.get("messages", []) if message.get("role") == "tool")
    tools = [tool["function"]["name"] for tool in body.get("tools") or []]

    def encode(turn: Turn, read: int, written: int) -> tuple[str, bytes]:
        message: dict[str, Any] = {"role": "assistant", "content": turn.text}
        if turn.tool:
            arguments = turn.arguments
            if turn.tool == "apply_patch":
                arguments = {"patchText": arguments}
            function = {"name": turn.tool, "arguments": json.dumps(arguments)}
            call = {"index": 0, "id": f"call_{stage}", "type": "function", "function": function}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        usage = {"prompt_tokens": read, "completion_tokens": written,
                 "total_tokens": read + written}  # fmt: skip
        reason = "tool_calls" if turn.tool else "stop"
        common = {"id": "chat_1", "created": 0, "model": body.get("model")}
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": reason}
            whole = {**common, "object": "chat.completion", "choices": [choice], "usage": usage}
            return "application/json", json.dumps(whole).encode()
        parts = [
            {"choices": [{"index": 0, "delta": message, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
            {"choices": [], "usage": usage},
        ]
        chunks = [{**common, "object": "chat.completion.chunk", **part} for part in parts]
        lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        return "text/event-stream", f"{lines}data: [DONE]\n\n".encode()

    handler.answer(body, stage, tools, tokens, encode)


def _gemini(is_stream: bool) -> Callable[[_Handler, Any, int], None]:
    """Google's."""

    def respond(handler: _Handler, body: Any, tokens: int) -> None:
        parts = [part for each in body.get("contents", []) for part in each.get("parts", [])]
        stage = sum(1 for part in parts if "functionResponse" in part)
        tools = [
            function.get("name", "")
            for tool in body.get("tools", [])
            for function in tool.get("functionDeclarations", [])
        ]

        def encode(turn: Turn, read: int, written: int) -> tuple[str, bytes]:
            part: dict[str, Any] = {"text": turn.text}
            if turn.tool:
                part = {"functionCall": {"name": turn.tool, "args": turn.arguments}}
            body = {
                "candidates": [{"index": 0, "content": {"role": "model", "parts": [part]},
                                "finishReason": "STOP"}],
                "usageMetadata": {"promptTokenCount": read, "candidatesTokenCount": written,
                                  "totalTokenCount": read + written},
            }  # fmt: skip
            if not is_stream:
                return "application/json", json.dumps(body).encode()
            return "text/event-stream", f"data: {json.dumps(body)}\r\n\r\n".encode()

        handler.answer(body, stage, tools, tokens, encode)

    return respond


FORMS: dict[str, Callable[[_Handler, Any, int], None]] = {
    "/messages": _messages,
    "/responses": _responses,
    "/chat/completions": _chat,
    ":streamGenerateContent": _gemini(True),
    ":generateContent": _gemini(False),
}


def main() -> None:
    """Serve until killed."""
    port, file, *script = sys.argv[1:]
    with ModelServer(script or ["good"], port=int(port), file=Path(file)) as server:
        print(server.url, flush=True)
        for _ in itertools.count():
            time.sleep(1)


if __name__ == "__main__":
    main()
