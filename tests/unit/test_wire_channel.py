"""Messages over a socket: whole, in pieces, hostile."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.wire import channel as channel_module
from autoresearch.wire.channel import (
    MAX_DESCRIPTORS,
    MAX_FRAME_BYTES,
    Channel,
    ChannelBroken,
    ChannelClosed,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
Ends = tuple[Channel, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Our end and the other as a plain socket."""
    ours, theirs = Channel.pair()
    yield ours, theirs
    ours.close()
    theirs.close()


def frame(payload: bytes) -> bytes:
    """A frame as it goes over the socket."""
    return struct.pack(">I", len(payload)) + payload


def num_open_fds() -> int:
    """Descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


NAMES = st.text().filter(lambda name: name not in ("kind", "fds", "self"))


@given(body=st.dictionaries(NAMES, JSON, max_size=4))
def test_what_is_sent_arrives(body: dict[str, object]) -> None:
    """Any JSON body comes out as it went in."""
    ours, theirs = Channel.pair()
    other = Channel(theirs)
    ours.send("say", **body)
    message = other.receive(1.0)
    ours.close()
    other.close()
    assert message is not None
    assert (message.kind, message.body, message.fds) == ("say", body, [])


@given(cuts=st.lists(st.integers(1, 30), max_size=6))
def test_messages_survive_any_cutting(cuts: list[int]) -> None:
    """Bytes may arrive in any pieces, several messages in one, one in several."""
    ours, theirs = Channel.pair()
    stream = b"".join(frame(json.dumps({"kind": f"k{i}", "i": i}).encode()) for i in range(3))
    received = []
    for cut in [*cuts, len(stream)]:
        theirs.sendall(stream[:cut])
        stream = stream[cut:]
        while message := ours.receive(0.0):
            received.append((message.kind, message.body["i"]))
    ours.close()
    theirs.close()
    assert received == [("k0", 0), ("k1", 1), ("k2", 2)]


def test_descriptors_travel(ends: Ends) -> None:
    """A descriptor sent along is open on the other side and can be closed with the message."""
    ours, theirs = ends
    other = Channel(theirs)
    reader, writer = os.pipe()
    ours.send("take", [writer], name="pipe")
    os.close(writer)
    message = other.receive(1.0)
    assert message is not None
    os.write(message.fds[0], b"hello")
    message.close()
    assert message.fds == []
    assert os.read(reader, 10) == b"hello"
    assert os.read(reader, 10) == b""
    os.close(reader)


@pytest.mark.parametrize(
    "payload",
    [
        b"not json",
        b"[1, 2]",
        b'"text"',
        b"{}",
        b'{"kind": 3}',
        b'{"kind": null}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"kind": "x", "n": 1' + b"0" * 5000 + b"1x}",
    ],
)
def test_what_is_no_message_breaks_the_channel(ends: Ends, payload: bytes) -> None:
    """Anything but an object with a text `kind` is refused."""
    ours, theirs = ends
    theirs.sendall(frame(payload))
    with pytest.raises(ChannelBroken):
        ours.receive(1.0)


def test_a_frame_over_the_limit_is_refused_before_it_arrives(ends: Ends) -> None:
    """The announced length is enough to refuse it."""
    ours, theirs = ends
    theirs.sendall(struct.pack(">I", MAX_FRAME_BYTES + 1))
    with pytest.raises(ChannelBroken, match="announced"):
        ours.receive(1.0)


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400, str(2**63)]
)
def test_numbers_that_break_things_later_become_none(ends: Ends, number: str) -> None:
    """NaN, infinities in any spelling and whole numbers over 64 bits do not come in."""
    ours, theirs = ends
    theirs.sendall(frame(b'{"kind": "x", "n": ' + number.encode() + b', "m": [-7, 0.5]}'))
    message = ours.receive(1.0)
    assert message is not None
    assert message.body == {"n": None, "m": [-7, 0.5]}


def test_nothing_there_is_none_after_the_timeout(ends: Ends) -> None:
    """No message and half a message are both no message yet."""
    ours, theirs = ends
    assert ours.receive(0.0) is None
    theirs.sendall(frame(b'{"kind": "x"}')[:6])
    assert ours.receive(0.01) is None
    theirs.sendall(frame(b'{"kind": "x"}')[6:])
    assert ours.receive() is not None


def test_a_closed_peer_is_noticed_after_its_last_message(ends: Ends) -> None:
    """What was sent before the end is still delivered."""
    ours, theirs = ends
    theirs.sendall(frame(b'{"kind": "last"}'))
    theirs.close()
    assert ours.receive(1.0).kind == "last"
    with pytest.raises(ChannelClosed):
        ours.receive(1.0)
    with pytest.raises(ChannelClosed):
        ours.send("hello")


def test_a_peer_that_died_with_our_words_unread_is_closed(ends: Ends) -> None:
    """A connection that is reset is a peer that is gone."""
    ours, theirs = ends
    ours.send("unread")
    theirs.close()
    with pytest.raises(ChannelClosed):
        ours.receive(1.0)


def test_a_peer_that_does_not_read_cannot_hold_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """When its buffer stays full the channel is broken, instead of waiting for ever."""
    monkeypatch.setattr(channel_module, "SEND_LIMIT_S", 0.05)
    ours, theirs = Channel.pair()

    def flood() -> None:
        for _ in range(10_000):
            ours.send("more", text="x" * 1000)

    with pytest.raises(ChannelBroken, match="did not read"):
        flood()
    ours.close()
    theirs.close()


def test_messages_too_large_or_without_json_are_not_sent(ends: Ends) -> None:
    """The sender hears of it, nothing goes out."""
    ours, _ = ends
    with pytest.raises(ValueError, match="at most"):
        ours.send("big", text="x" * MAX_FRAME_BYTES)
    with pytest.raises(ValueError, match="not JSON compliant"):
        ours.send("nan", value=float("nan"))


def test_a_flood_of_descriptors_breaks_the_channel_and_leaks_none() -> None:
    """More descriptors than allowed are refused; all that came are closed with the channel."""
    before = num_open_fds()
    ours, theirs = Channel.pair()
    with open("/dev/null") as null:
        for _ in range(2):
            socket.send_fds(theirs, [b"\0"], [null.fileno()] * (MAX_DESCRIPTORS - 10))
        with pytest.raises(ChannelBroken, match="descriptors"):
            ours.receive(0.0)
    ours.close()
    theirs.close()
    assert num_open_fds() == before


def test_an_end_can_be_passed_on(ends: Ends) -> None:
    """The descriptor of a detached end goes on as another channel."""
    ours, theirs = ends
    fd = Channel(theirs).detach()
    again = Channel.from_fd(fd)
    again.send("still here")
    assert again.fileno() == fd
    assert ours.receive(1.0).kind == "still here"
    again.close()
