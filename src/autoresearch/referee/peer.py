"""A process on the other side of a channel: candidates and presenters behind walls, the scorer
beside us.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import autoresearch
from autoresearch.system.procs import ProcessTree, spawn
from autoresearch.system.sandbox import Sandbox, Walls
from autoresearch.values.errors import AutoresearchError
from autoresearch.wire.channel import Channel, ChannelBroken, ChannelClosed, Message

_PASSED_ON = ("LD_LIBRARY_PATH", "CUDA_HOME", "TRITON_PTXAS_PATH", "LANG", "COVERAGE_PROCESS_START")

LAST_WORDS_S = 2.0  # between a closed channel and the exit code


class PeerGone(Exception):
    """The process ended, or broke the protocol; the text says which."""


class Peer:
    """A process tree and our end of its channel."""

    def __init__(self, name: str, tree: ProcessTree, channel: Channel) -> None:
        self.name = name
        self.tree = tree
        self.channel = channel
        self._is_ended = False

    def receive(self, timeout_s: float) -> Message | None:
        """The next message, or None after `timeout_s`.

        Raises:
            PeerGone: there will be none.
        """
        try:
            return self.channel.receive(timeout_s)
        except ChannelClosed as error:
            raise PeerGone(f"the {self.name} ended") from error
        except (ChannelBroken, OSError) as error:
            raise PeerGone(f"the {self.name} broke the protocol: {error}") from error

    def send(self, kind: str, fds: list[int] | None = None, **body: object) -> None:
        """Send a message.

        Raises:
            PeerGone: nobody is there to read it.
        """
        try:
            self.channel.send(kind, fds or [], **body)
        except ChannelClosed as error:
            raise PeerGone(f"the {self.name} ended") from error
        except (ChannelBroken, OSError) as error:
            raise PeerGone(f"the {self.name} broke the protocol: {error}") from error

    def finish(self, wait_s: float = 5.0) -> None:
        """Close our end, give a trusted process the time to leave in order, then end it."""
        self.channel.close()
        self.tree.wait(wait_s)
        self.end()

    def end(self) -> None:
        """Kill the whole tree and close our end; a second call does nothing.

        Raises:
            AutoresearchError: a process survived SIGKILL, so nothing measured beside it can be
            trusted.
        """
        if self._is_ended:
            return
        survivors = self.tree.kill()
        self.channel.close()
        self._is_ended = True
        if survivors:
            raise AutoresearchError(
                f"processes {survivors} of the {self.name} survived SIGKILL; look at them with `ps "
                "-fp`"
            )


def open_inside(
    module: str, sandbox: Sandbox, walls: Walls, *, env: dict[str, str], output_cap_bytes: int
) -> Peer:
    """Start the module of a candidate or presenter behind `walls`."""
    role = module.rpartition(".")[2]
    ours, theirs = Channel.pair(most_fds=0)
    argv = [sys.executable, "-P", "-m", module, str(theirs.fileno())]
    extra = env.pop("INSIDE_PATH", "")
    try:
        tree = sandbox.spawn(
            argv,
            walls,
            env={**_python_env(extra), **env},
            pass_fds=[theirs.fileno()],
            output_cap_bytes=output_cap_bytes,
        )
    finally:
        theirs.close()
    return Peer(role, tree, ours)


def open_scorer(env: dict[str, str]) -> Peer:
    """Start the scorer, a trusted process without walls."""
    ours, theirs = Channel.pair()
    argv = [sys.executable, "-P", "-m", "autoresearch.referee.scorer", str(theirs.fileno())]
    try:
        tree = spawn(
            argv,
            env={**os.environ, **_python_env(), **env},
            pass_fds=[theirs.fileno()],
            output_cap_bytes=1 << 16,
            is_expendable=False,
        )
    finally:
        theirs.close()
    return Peer("scorer", tree, ours)


def _python_env(extra: str = "") -> dict[str, str]:
    package_parent = str(Path(autoresearch.__file__).resolve().parents[1])
    others = [
        p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != package_parent
    ]
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join([package_parent, *others, *([extra] if extra else [])]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
