"""Calls out, listens, and asks a name server."""

import os
import socket

from kit import Bigram as build_model
from kit import attempt, train

CAUGHT = "no gain"
NEEDS_WALLS = True


def connect(address):
    with socket.create_connection(address, timeout=0.5):
        return True


def send(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        return end.sendto(b"weights, please", address)


def main(run):
    got = attempt(
        out=lambda: connect(("192.0.2.1", 80)),
        packet=lambda: send(("192.0.2.1", 53)),
        name=lambda: socket.getaddrinfo("example.org", 80),
        interfaces=lambda: [name for _, name in socket.if_nameindex() if name != "lo"],
        sockets=lambda: [n for n in os.listdir("/run") if n.endswith((".sock", "socket"))],
    )
    train(run, build_model(run), got=got)
