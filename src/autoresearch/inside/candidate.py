"""Entry point of the sandboxed process that trains; its argument is the channel's descriptor.

It says `hello` once torch is imported, waits for `load` (settings, and the descriptor that the
weights go into), imports train.py and calls its main. An exception becomes a `failed` message for
people to read; the referee does not need it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from types import ModuleType

import torch

from autoresearch.inside import ops
from autoresearch.inside.harness import Run
from autoresearch.inside.script import Served, run_script
from autoresearch.system.procs import die_with_parent
from autoresearch.wire.channel import Channel, ChannelClosed


def load_train(path: str) -> ModuleType:
    """Import `path` as the module `train`, as torch.compile and pickle expect a module to be."""
    spec = importlib.util.spec_from_file_location("train", path)
    assert spec is not None, "a .py path always has a spec"
    assert spec.loader is not None, "and a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules["train"] = module
    spec.loader.exec_module(module)
    return module


def set_threads(threads: int) -> None:
    """Use `threads` CPU threads; 0 leaves torch's own choice."""
    if threads:
        torch.set_num_threads(threads)


def main() -> None:
    """Train once."""
    die_with_parent()
    channel = Channel.from_fd(int(sys.argv[1]))
    channel.send("hello")
    ops.preload()  # where this process waits for its run, that is the time
    message = channel.receive()
    assert message is not None, "without a timeout there is always a message"
    set_threads(message.body["threads"])
    try:
        run = Run(channel, message.body, weights_fd=message.fds[0])
        if message.body.get("is_script"):
            run_script(message.body["train_path"], Served(run, channel, message.body))
        load_train(message.body["train_path"]).main(run)
        channel.send("failed", error="main() returned without run.submit(model)")
    except ChannelClosed:
        pass
    except BaseException as error:  # noqa: BLE001  train.py may raise anything, SystemExit included
        traceback.print_exc()
        sys.stderr.flush()
        channel.send("failed", error=f"{type(error).__name__}: {error}"[:2000])
    os._exit(1)


if __name__ == "__main__":
    main()
