"""Who may speak to the MCP server; tests/e2e/test_mcp_tools.py has what the tools answer."""

from __future__ import annotations

import asyncio
from typing import Any

from autoresearch.cli.mcp_server import BearerOnly


def test_the_token_is_wanted() -> None:
    """Without it nothing reaches the application."""
    reached, sent = [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope)

    async def send(message: Any) -> None:
        sent.append(message)

    guarded = BearerOnly(app, "secret")
    for value in (b"", b"Bearer wrong", b"secret"):
        scope = {"type": "http", "headers": [(b"authorization", value)]}
        asyncio.run(guarded(scope, None, send))  # type: ignore[arg-type]
    assert [message.get("status") for message in sent[::2]] == [401] * 3
    assert reached == []
    asyncio.run(
        guarded({"type": "http", "headers": [(b"authorization", b"Bearer secret")]}, None, send)  # type: ignore[arg-type]
    )
    assert len(reached) == 1
