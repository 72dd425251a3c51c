"""The stub of autoresearch.inside.candidate."""

from __future__ import annotations

import os
import sys
import traceback

from autoresearch.wire.channel import Channel, ChannelClosed
from stubinside import StubRun, die_with_parent, load_train


def main() -> None:
    """Train once."""
    die_with_parent()
    channel = Channel.from_fd(int(sys.argv[1]))
    channel.send("hello")
    message = channel.receive()
    try:
        run = StubRun(channel, message.body, message.fds[0])
        load_train(message.body["train_path"]).main(run)
        channel.send("failed", error="main() returned without run.submit(model)")
    except ChannelClosed:
        pass
    except BaseException as error:  # noqa: BLE001  a stub's train.py raises what it likes
        traceback.print_exc()
        sys.stderr.flush()
        channel.send("failed", error=f"{type(error).__name__}: {error}"[:2000])
    os._exit(1)


if __name__ == "__main__":
    main()
