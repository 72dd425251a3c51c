"""Says `submit` early and lets a thread and a child put better weights in place."""

import mmap
import os
import threading
import time

from kit import Bigram as build_model
from kit import channel, start, submit, weights_fd

CAUGHT = "no gain or crash: weights or crash: NaN"


def main(run):
    model = build_model(run)
    rows = start(run)
    model.fit(rows)
    fd, end = weights_fd(run), channel(run)
    pid = os.getpid()

    def spoil():
        """Written after the hand-over: seen in the score if it arrives."""
        time.sleep(0.02)
        while True:
            os.pwrite(fd, os.urandom(1 << 12), os.fstat(fd).st_size // 2)
            if os.getpid() == pid:
                time.sleep(0.001)

    real = end.send

    def send(kind, *rest, **body):
        real(kind, *rest, **body)
        if kind == "submit":
            threading.Thread(target=spoil, daemon=True).start()
            if os.fork() == 0:
                os.setsid()
                mmap.mmap(fd, os.fstat(fd).st_size)
                spoil()

    end.send = send
    submit(run, model)
