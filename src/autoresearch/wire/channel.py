"""Messages across the seam: one JSON object a frame over a Unix socket, descriptors attached.

A frame is a 4-byte big-endian length and that many bytes of JSON. Both ends treat what arrives as
hostile: a frame has a size limit and must be an object with a text `kind`; NaN, infinities and
whole numbers over 64 bits become None. A peer that breaks these rules, or does not read what it is
sent, is a `ChannelBroken`; a peer that is gone is a `ChannelClosed`. Untrusted peers may not send
descriptors (`most_fds`). Those that come are closed by threads: a TCP socket that was set to linger
takes as long to close as whoever sent it likes, and so does a channel with one in its queue.
"""

from __future__ import annotations

import json
import math
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

MAX_FRAME_BYTES = 256 * 1024
MAX_DESCRIPTORS = 253  # the most that the kernel passes; what found no room it would close itself
SEND_LIMIT_S = (
    30.0  # for a peer to make room in its buffer; far longer than an honest one ever takes
)
CLOSE_WAIT_S = 0.1
_LENGTH = struct.Struct(">I")


class ChannelClosed(Exception):
    """The peer closed its end or died."""


class ChannelBroken(Exception):
    """The peer sent something that is not a message, or does not read ours."""


@dataclass(frozen=True, slots=True)
class Message:
    """One received message; whoever takes `fds` closes them."""

    kind: str
    body: dict[str, Any]
    fds: list[int] = field(default_factory=list)

    def close(self) -> None:
        """Close the descriptors that came along."""
        _close_aside(self.fds)
        self.fds.clear()


class Channel:
    """One end of a conversation. Not thread-safe: one reader, one writer.

    The peer may have sent `most_fds` descriptors whose message is not complete; 0 for a peer that
    has no business to send any.
    """

    def __init__(self, end: socket.socket, most_fds: int = MAX_DESCRIPTORS) -> None:
        self._socket = end
        self._most_fds = most_fds
        self._buffer = bytearray()
        self._fds: list[int] = []
        # Both processes that hold this end must set it alike: the flag behind it is shared.
        end.settimeout(SEND_LIMIT_S)

    @classmethod
    def pair(cls, most_fds: int = MAX_DESCRIPTORS) -> tuple[Channel, socket.socket]:
        """Our end, and the other end as a plain socket to be inherited by a child."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return cls(ours, most_fds), theirs

    @classmethod
    def from_fd(cls, fd: int, most_fds: int = MAX_DESCRIPTORS) -> Channel:
        """The end that a parent left in descriptor `fd`."""
        return cls(socket.socket(fileno=fd), most_fds)

    def fileno(self) -> int:
        """The descriptor of this end."""
        return self._socket.fileno()

    def send(self, kind: str, fds: Sequence[int] = (), **body: Any) -> None:
        """Send one message, waiting while the peer's buffer is full.

        Raises:
            ChannelClosed: the peer is gone.
            ChannelBroken: its buffer stayed full for SEND_LIMIT_S.
            ValueError: the message is over MAX_FRAME_BYTES, or holds what JSON cannot.
        """
        payload = json.dumps({"kind": kind, **body}, allow_nan=False).encode()
        if len(payload) > MAX_FRAME_BYTES:
            raise ValueError(
                f"message {kind!r} has {len(payload)} bytes, {MAX_FRAME_BYTES} at most"
            )
        frame = _LENGTH.pack(len(payload)) + payload
        try:
            sent = socket.send_fds(self._socket, [frame], list(fds)) if fds else 0
            if sent < len(frame):  # sending nothing to a peer that has read it all and left fails
                self._socket.sendall(frame[sent:])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed(f"the peer was gone before {kind!r} could be sent") from error
        except TimeoutError as error:
            raise ChannelBroken(f"the peer did not read for {SEND_LIMIT_S:.0f} s") from error

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """The next message; None where none is complete after `timeout_s` seconds.

        Raises:
            ChannelClosed: the peer is gone and nothing is left to read.
            ChannelBroken: what came is no message.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (message := self._take()) is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            readable, _, _ = select.select([self._socket], [], [], left)
            if not readable:
                return None
            self._fill()
        return message

    def _fill(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, 1 << 16, MAX_DESCRIPTORS)
        except ConnectionResetError as error:
            raise ChannelClosed("the peer died") from error
        self._fds.extend(fds)
        if len(self._fds) > self._most_fds:
            raise ChannelBroken(f"more than {self._most_fds} descriptors came")
        if not data:
            raise ChannelClosed("the peer closed the channel")
        self._buffer += data

    def _take(self) -> Message | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > MAX_FRAME_BYTES:
            raise ChannelBroken(
                f"a frame of {length} bytes was announced, {MAX_FRAME_BYTES} at most"
            )
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        fds, self._fds = self._fds, []
        return Message(*_parse(payload), fds)

    def detach(self) -> int:
        """Give up this end and return its descriptor, to be passed on.

        Nothing may be left unread.
        """
        return self._socket.detach()

    def close(self) -> None:
        """Close the socket and every descriptor that nobody took."""
        _close_aside([*self._fds, self._socket.detach()])
        self._fds.clear()


def _close_aside(fds: Sequence[int]) -> None:
    """Close descriptors, each in a thread of its own, and wait a moment, not for ever."""
    closers = [threading.Thread(target=_close, args=(fd,), daemon=True) for fd in fds if fd >= 0]
    for closer in closers:
        closer.start()
    deadline = time.monotonic() + CLOSE_WAIT_S
    for closer in closers:
        closer.join(max(0.0, deadline - time.monotonic()))


def _close(fd: int) -> None:
    with suppress(OSError):
        os.close(fd)


def _parse(payload: bytes) -> tuple[str, dict[str, Any]]:
    try:
        body = json.loads(
            payload, parse_constant=lambda _: None, parse_float=_finite, parse_int=_sized
        )
        kind = body.pop("kind")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ChannelBroken(f"not a message: {payload[:80]!r}") from error
    if not isinstance(kind, str):
        raise ChannelBroken(f"the kind of a message must be text, it is {kind!r}")
    return kind, body


def _finite(text: str) -> float | None:
    value = float(text)  # 1e999 is a number to JSON
    return value if math.isfinite(value) else None


def _sized(text: str) -> int | None:
    """Whole numbers that fit 64 bits: formatting or storing a longer one fails far from here."""
    value = int(text) if len(text) <= 20 else 2**64
    return value if -(2**63) <= value < 2**63 else None
