"""Entry point of the fresh sandboxed process that answers the scorer.

It imports torch, says `hello` and waits without touching a device. `load` brings settings, the
submitted weights, the token buffer (read-only) and the logits buffer; from then on the other end of
the channel is the scorer's, and every `forward` is answered with `done` once the logits of the
tokens in the buffer are written. Errors leave as a fixed code: nothing that this process says in
words gets out.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import Tensor, nn

from autoresearch.inside import ops
from autoresearch.inside.candidate import load_train, set_threads
from autoresearch.inside.harness import Run
from autoresearch.inside.presented import map_logits, map_tokens
from autoresearch.inside.weights import load_weights
from autoresearch.system.procs import die_with_parent
from autoresearch.wire.channel import Channel, ChannelClosed, Message


def main() -> None:
    """Answer until the scorer goes."""
    die_with_parent()
    channel = Channel.from_fd(int(sys.argv[1]))
    channel.send("hello")
    ops.preload()  # while the candidate trains
    try:
        message = channel.receive()
        assert message is not None, "without a timeout there is always a message"
        _present(channel, message)
    except ChannelClosed:
        pass
    os._exit(0)


def _present(channel: Channel, message: Message) -> None:
    try:
        settings = message.body
        set_threads(settings["threads"])
        weights_fd, tokens_fd, logits_fd = message.fds
        run = Run(channel, settings)
        torch.manual_seed(run.seed)
        with torch.no_grad():  # operators then try out, and compile, the way forward alone
            model = load_train(settings["train_path"]).build_model(run)
    except Exception:  # noqa: BLE001  whatever train.py raises, only a code leaves
        channel.send("failed", code="build")
        return
    try:
        load_weights(model, weights_fd)
    except Exception:  # noqa: BLE001
        channel.send("failed", code="weights")
        return
    model.eval()
    shape = (settings["chunk_rows"], run.context, run.vocab_size)
    tokens = map_tokens(tokens_fd, shape[:2])
    logits = map_logits(logits_fd, shape, run.device)
    channel.send("ready")
    while True:
        channel.receive()
        channel.send(*_forward(model, run, tokens, logits))


def _forward(model: nn.Module, run: Run, tokens: Tensor, logits: Tensor) -> tuple[Any, ...]:
    """Fill the logits buffer for the rows now in the token buffer."""
    try:
        with torch.inference_mode():
            answer = model(tokens.to(run.device, torch.long))
            if answer.shape != logits.shape:
                return ("wrong_shape",)
            logits.copy_(answer)
            if run.device.type == "cuda":
                torch.cuda.synchronize(run.device)
            elif run.device.type == "mps":
                torch.mps.synchronize()
        return ("done",)
    except Exception:  # noqa: BLE001
        return ("failed_forward",)


if __name__ == "__main__":
    main()
