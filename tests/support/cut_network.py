"""In a network of its own: cut a link in each way, and print as JSON who was reached before, then and after.

Started by `isolated`. A replica echoes datagrams; each is sent until it is answered or the limit has passed.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

from deploy.checks.namespaces import CUTS, Replicas
from foldserve.demo.children import ending_with_us

_PORT = 7777
_ECHO = f"""
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("0.0.0.0", {_PORT}))
    while True:
        content, address = server.recvfrom(64)
        server.sendto(content, address)
"""
# Nothing comes through a cut link however long one waits; a whole one may need a while on a busy machine.
_NEVER_S, _ENOUGH_S = 0.3, 30.0


def is_reached(address: str, limit_s: float) -> bool:
    """Whether a datagram to ``address`` came back."""
    until_s = time.monotonic() + limit_s
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.1)
        while time.monotonic() < until_s:
            try:
                client.sendto(b"question", (address, _PORT))
                if client.recv(64) == b"question":
                    return True
            except OSError:  # no answer, or the kernel says that there is no way
                time.sleep(0.02)
    return False


def main() -> None:
    """Print a list of [way, before, the cut one then, the other one then, after]."""
    replicas = Replicas(2)
    for number in range(2):
        subprocess.Popen(ending_with_us(replicas.command(number, [sys.executable, "-IS", "-c", _ECHO])))
    told = []
    for way in CUTS:
        cut, other = replicas.addresses
        before = is_reached(cut, _ENOUGH_S)
        replicas.cut(0, way)
        then = is_reached(cut, _NEVER_S), is_reached(other, _ENOUGH_S)
        replicas.mend(0, way)
        told.append([way, before, *then, is_reached(cut, _ENOUGH_S)])
    print(json.dumps(told))


if __name__ == "__main__":
    main()
