"""A stand-in for the scorer without torch, where the score itself is not what a test is about.

Started with a channel's descriptor; computes bits per byte with numpy, finds nothing in any audit.
"""

from __future__ import annotations

import contextlib
import math
import sys

import numpy as np

from autoresearch.system.procs import die_with_parent
from autoresearch.wire.buffer import SharedBuffer
from autoresearch.wire.channel import Channel, ChannelClosed


def serve(channel: Channel) -> None:
    """Answer the referee until it goes."""
    settings = channel.receive().body
    rows = np.fromfile(settings["rows_path"], dtype="<u2").reshape(-1, settings["context"] + 1)
    num_bytes = np.load(settings["token_bytes_path"])[rows[:, 1:]]
    chunk, context, vocab = (settings[n] for n in ("chunk_rows", "context", "vocab_size"))
    scored: set[int] = set()
    channel.send("ready")
    while True:
        request = channel.receive()
        if request.kind == "prepare":
            tokens = SharedBuffer.create("tokens", 4 * chunk * context)
            logits = SharedBuffer.create("logits", 4 * chunk * context * vocab)
            channel.send("prepared", [tokens.fd, logits.fd])
            continue
        if request.kind == "compare":
            channel.send("compared", agrees=True)
            continue
        presenter = Channel.from_fd(request.fds.pop())
        if request.kind == "audit" and request.body["run_id"] not in scored:
            channel.send("failed", code="unknown_run")
            presenter.close()
            continue
        scored.add(request.body["run_id"])
        shown = np.frombuffer(tokens.writable(), dtype=np.int32).reshape(chunk, context)
        nats = np.empty(num_bytes.shape)
        try:
            for i in range(0, len(rows), chunk):
                part = rows[i : i + chunk]
                shown[: len(part)] = part[:, :-1]
                presenter.send("forward")
                if presenter.receive().kind != "done":
                    raise ChannelClosed
                answer = np.frombuffer(logits.readable(), dtype=np.float32)
                answer = answer.reshape(chunk, context, vocab)[: len(part)].astype(float)
                chosen = np.take_along_axis(answer, part[:, 1:, None].astype(int), axis=2)[..., 0]
                nats[i : i + chunk] = np.log(np.exp(answer).sum(axis=2)) - chosen
            bpb = float(nats[num_bytes > 0].sum() / math.log(2) / num_bytes.sum())
            body = {"val_bpb": bpb, "val_bpb_decoded": bpb, "num_tokens": num_bytes.size}
            channel.send("scored", **body, finding="")
        except ChannelClosed:
            channel.send("failed", code="presenter_died")
        presenter.close()


if __name__ == "__main__":
    die_with_parent()
    with contextlib.suppress(ChannelClosed):
        serve(Channel.from_fd(int(sys.argv[1])))
