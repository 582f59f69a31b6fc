"""A web server in this process, over a small application."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from foldserve.serving.web_server.connection import ConnectionLimits
from foldserve.serving.web_server.server import WebServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from foldserve.serving.security.certificate import ServerCredentials

LARGE_BYTES = 16 * 2**20  # more than the buffers of the kernel hold
LIMITS = ConnectionLimits(max_connections=4, max_running=2, head_s=30.0, max_head_bytes=8192, keep_alive_s=30)


class Site:
    """A running server; /hold is answered once `release` is set, /large is large, the rest is short.

    /echo answers the request's body; the others do not read it.
    """

    def __init__(self, limits: ConnectionLimits, credentials: ServerCredentials | None) -> None:
        self.release = threading.Event()
        self.holding_count = 0
        self.server = WebServer(
            self._answer,
            name="web-server-test",
            limits=limits,
            to_body=lambda text: (b"text/plain", f"refused: {text}".encode()),
            credentials=credentials,
        )
        self.port = asyncio.run(self.server.start("127.0.0.1", 0, purpose="a test", advice="do not"))

    @property
    def connection_count(self) -> int:
        """How many connections the server has."""
        return len(self.server._server.server_state.connections)

    def connect(self, content: bytes = b"") -> socket.socket:
        """Return a connection on which ``content`` was sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(content)
        return connection

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        body = b"ok"
        if scope["path"] == "/echo":
            body = await _read_all(receive)
        if scope["path"] == "/hold":
            self.holding_count += 1
            while not self.release.is_set():
                await asyncio.sleep(0.01)
        if scope["path"] == "/large":
            body = bytes(LARGE_BYTES)
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _read_all(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


@pytest.fixture
def serve() -> Iterator[Callable[..., Site]]:
    """Starts servers whose limits are LIMITS, but for those that are given."""
    sites: list[Site] = []

    def start(credentials: ServerCredentials | None = None, **limits: Any) -> Site:
        sites.append(Site(replace(LIMITS, **limits), credentials))
        return sites[-1]

    yield start
    for site in sites:
        site.release.set()
        asyncio.run(site.server.close())


def get(path: str, *headers: str) -> bytes:
    """Return a request."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def receive_answer(connection: socket.socket) -> bytes:
    """Return the next answer on ``connection``; what there is of it if the connection ends first."""
    received = b""
    try:
        while b"\r\n\r\n" not in received and (more := connection.recv(65536)):
            received += more
        head, _, body = received.partition(b"\r\n\r\n")
        if b"content-length: " in head:
            length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
            while len(body) < length and (more := connection.recv(1 << 20)):
                body += more
    except ConnectionError:
        return received
    return head + b"\r\n\r\n" + body if received else b""


def is_closed(connection: socket.socket) -> bool:
    """Wait until the server closes ``connection``; False if it sends something instead."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged as a warning or worse."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@contextmanager
def closing(*connections: socket.socket) -> Iterator[None]:
    """Close ``connections`` at the end."""
    try:
        yield
    finally:
        for connection in connections:
            connection.close()
