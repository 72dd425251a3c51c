"""A command of the owner's, run when something happened: a message to a phone, say.

It cannot hurt the session.
"""

from __future__ import annotations

import os
import subprocess

from autoresearch.values.text import one_line

LIMIT_S = 60.0


def run_hook(command: str, event: str, facts: dict[str, object]) -> str:
    """Run `command` in a shell with AUTORESEARCH_EVENT and AUTORESEARCH_<FACT> set.

    What went wrong, or "".
    """
    if not command:
        return ""
    variables = {f"AUTORESEARCH_{name.upper()}": str(value) for name, value in facts.items()}
    env = {**os.environ, "AUTORESEARCH_EVENT": event, **variables}
    try:
        done = subprocess.run(  # noqa: S602 - the owner's own command, from their own file
            command,
            shell=True,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
            check=False,
            start_new_session=True,  # a Ctrl-C is meant for the session
        )
    except subprocess.TimeoutExpired:
        return f"the hook for {event!r} was stopped after {LIMIT_S:.0f} s"
    except OSError as error:
        return f"the hook for {event!r} did not start: {error}"
    if done.returncode:
        said = one_line(done.stderr)
        return f"the hook for {event!r} failed with exit code {done.returncode}: {said}"
    return ""
