"""Sockets that servers of pages and REST listen on."""

from __future__ import annotations

import socket

import pytest

from foldserve.serving.addresses import listening_sockets


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_small_writes_are_sent_at_once(host: str) -> None:
    """Nagle's algorithm holds the second one back until the first is acknowledged, which takes 40 ms."""
    listeners = listening_sockets(host, 0)
    try:
        for listener in listeners:
            with socket.create_connection(listener.getsockname()[:2]), listener.accept()[0] as accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    finally:
        for listener in listeners:
            listener.close()
