"""Chooses ports for servers that a test starts, or starts again, on a port that it knows before."""

from __future__ import annotations

import contextlib
import random
import socket


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, from below those that the kernel gives to whoever asks for any."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(15_000, 30_000)  # not the seed that pytest-randomly sets
        if port not in ports:
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
                ports.append(port)
    return ports
