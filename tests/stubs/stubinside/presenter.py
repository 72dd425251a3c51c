"""The stub of autoresearch.inside.presenter."""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import sys
from typing import Any

from autoresearch.wire.channel import Channel, ChannelClosed, Message
from stubinside import StubRun, die_with_parent, load_train


def main() -> None:
    """Answer until the scorer goes."""
    die_with_parent()
    channel = Channel.from_fd(int(sys.argv[1]))
    channel.send("hello")
    with contextlib.suppress(ChannelClosed):
        present(channel, channel.receive())
    os._exit(0)


def present(channel: Channel, message: Message) -> None:
    """Load, then answer one `forward` after the other."""
    settings: dict[str, Any] = message.body
    run = StubRun(channel, settings)
    run.weights_fd, run.tokens_fd, run.logits_fd = message.fds
    try:
        model = load_train(settings["train_path"]).build_model(run)
    except Exception:  # noqa: BLE001  only a code leaves
        channel.send("failed", code="build")
        return
    try:
        model.load(os.pread(run.weights_fd, os.fstat(run.weights_fd).st_size, 0))
    except Exception:  # noqa: BLE001  only a code leaves
        channel.send("failed", code="weights")
        return
    tokens = mmap.mmap(run.tokens_fd, os.fstat(run.tokens_fd).st_size, prot=mmap.PROT_READ)
    logits = mmap.mmap(run.logits_fd, os.fstat(run.logits_fd).st_size)
    channel.send("ready")
    while True:
        channel.receive()
        channel.send(forward(model, run, tokens, logits))


def forward(model: Any, run: StubRun, tokens: mmap.mmap, logits: mmap.mmap) -> str:
    """Fill the logits buffer; the code of what went wrong, or `done`."""
    flat = array.array("i", tokens[:])
    rows = [list(flat[i : i + run.context]) for i in range(0, len(flat), run.context)]
    try:
        answer = model.answer(rows)
    except Exception:  # noqa: BLE001  only a code leaves
        return "failed_forward"
    if len(answer) != len(logits):
        return "wrong_shape"
    logits[:] = answer
    return "done"


if __name__ == "__main__":
    main()
