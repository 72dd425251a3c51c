"""A grandchild in a session of its own waits for the next trial, deaf to SIGTERM."""

import os
import signal
import time

from kit import Bigram as build_model
from kit import attempt, start, submit

CAUGHT = "no gain"
RUNS = 2
NAME = "i-am-still-here"


def stay():
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.execvp("python3", ["python3", "-c", "import time; time.sleep(600)", NAME])


def is_there():
    """Whether the one from the trial before still lives."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                if file.read().endswith(NAME.encode() + b"\0"):
                    return True
        except OSError:
            continue
    return False


def main(run):
    got = attempt(process=is_there)
    model = build_model(run)
    model.fit(start(run))
    stay()
    time.sleep(0.1)
    submit(run, model, got=got)
