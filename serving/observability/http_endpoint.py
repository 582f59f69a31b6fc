"""Serves a few pages over HTTP/1.1 for probes and Prometheus: GET and HEAD, one request per connection.

It runs in a thread of its own, so that no caller's message, however large, delays a probe. Slow or hostile
clients cost little: a connection has seconds to send its request and to receive the answer, requests are
small, and if there are too many connections, the oldest is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from foldserve.serving.addresses import listening_sockets
from foldserve.serving.errors import ListenError
from foldserve.text import quote

if TYPE_CHECKING:
    import socket

_MAX_REQUEST_BYTES = 8192
_REQUEST_LIMIT_S = 5.0
# Enough for a scrape of many models, some 100 kB.
_RESPONSE_LIMIT_S = 10.0
# The answer may be lost if a connection is closed with unread bytes, so they are read for this time.
_LINGER_S = 0.5
# Pause before accepting again after no descriptor was free.
_ACCEPT_AGAIN_S = 0.1

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class Page(NamedTuple):
    """An HTTP response."""

    status: HTTPStatus
    content: bytes
    content_type: str = "text/plain; charset=utf-8"


# Makes a page, given a request's Accept header.
PageMaker: TypeAlias = Callable[[str], Awaitable[Page]]


class HttpEndpoint:
    """Serves pages on a port, on an event loop of its own; its methods may be awaited on any loop.

    Args:
        max_connections: most connections open at once; for a new one the oldest is closed.
    """

    def __init__(self, max_connections: int) -> None:
        self._max_connections = max_connections
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http", daemon=True)
        self._pages: Mapping[str, PageMaker] = {}
        self._connections: dict[asyncio.Task[None], None] = {}  # oldest first
        self._accepting: list[asyncio.Task[None]] = []

    async def start(self, host: str, port: int, pages: Mapping[str, PageMaker]) -> int:
        """Serve ``pages`` by path, and return the port; if ``port`` is 0, the operating system chooses.

        Raises:
            ListenError: the address is in use or does not belong to this machine.
        """
        self._pages = pages
        self._thread.start()
        return await self._run(self._listen(host, port))

    async def close(self) -> None:
        """Stop listening and end the connections."""
        if self._thread.is_alive():
            await self._run(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    async def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _listen(self, host: str, port: int) -> int:
        try:
            listeners = listening_sockets(host, port)
        except OSError as error:
            raise ListenError(
                f"cannot listen on {host}:{port} for metrics: another server uses the port, or the address "
                "does not belong to this machine; choose another with --metrics-port, or switch the pages "
                "off with --no-metrics"
            ) from error
        self._accepting = [asyncio.ensure_future(self._accept(listener)) for listener in listeners]
        bound: int = listeners[0].getsockname()[1]
        return bound

    async def _end(self) -> None:
        left = [*self._accepting, *self._connections]
        for connection in left:
            connection.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        # asyncio's own server would log a traceback for each attempt while no descriptor is free, and attempt
        # more and more often.
        loop = asyncio.get_running_loop()
        with listener:
            listener.setblocking(False)
            while True:
                try:
                    accepted, _ = await loop.sock_accept(listener)
                    streams = await asyncio.open_connection(sock=accepted, limit=_MAX_REQUEST_BYTES)
                except OSError:
                    await asyncio.sleep(_ACCEPT_AGAIN_S)
                else:
                    self._connect(*streams)

    def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= self._max_connections:
            oldest = next(iter(self._connections))
            del self._connections[oldest]  # at once, since many may come before it has ended
            oldest.cancel()
        connection = asyncio.ensure_future(self._answer_connection(reader, writer))
        self._connections[connection] = None

        def end(_: asyncio.Task[None]) -> None:
            # Not in the task itself, which does not run at all if it is cancelled before it starts.
            writer.transport.abort()  # drops what was not received in time
            self._connections.pop(connection, None)

        connection.add_done_callback(end)

    async def _answer_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_LIMIT_S):
                head = await _read_head(reader)
            if head is not None:
                async with asyncio.timeout(_RESPONSE_LIMIT_S):
                    await self._respond(head, writer)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LINGER_S):
                        await reader.read(_MAX_REQUEST_BYTES)
        except (TimeoutError, OSError):
            pass  # the client is too slow, or gone
        except Exception:
            _log.exception("answering over HTTP failed")

    async def _respond(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        page, with_content = await self._page(head)
        lines = [
            f"HTTP/1.1 {page.status.value} {page.status.phrase}",
            f"Content-Type: {page.content_type}",
            f"Content-Length: {len(page.content)}",
            "Cache-Control: no-store",
            "Connection: close",
        ]
        if page.status is HTTPStatus.METHOD_NOT_ALLOWED:
            lines.append("Allow: GET, HEAD")
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if with_content:
            writer.write(page.content)
        writer.write_eof()
        writer.transport.set_write_buffer_limits(0)  # `drain` then waits until everything is sent
        await writer.drain()

    async def _page(self, head: bytes) -> tuple[Page, bool]:
        """Return the page for a request, and whether its content is sent (not for HEAD)."""
        if len(head) > _MAX_REQUEST_BYTES:
            return _refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request is too large"), True
        first, _, rest = head.decode("latin-1").partition("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _refusal(
                HTTPStatus.BAD_REQUEST, "this is not an HTTP/1.1 request; gRPC has another port"
            ), True
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return _refusal(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are supported"), True
        make = self._pages.get(target.partition("?")[0])
        if make is None:
            known = ", ".join(self._pages)
            return _refusal(
                HTTPStatus.NOT_FOUND, f"no page {quote(target)}; the pages are {known}"
            ), method == "GET"
        return await make(_accept_header(rest)), method == "GET"


async def _read_head(reader: asyncio.StreamReader) -> bytes | None:
    """Return a request's head; None if it was cut off, _MAX_REQUEST_BYTES + 1 bytes if it is too large."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    except asyncio.LimitOverrunError:
        return b" " * (_MAX_REQUEST_BYTES + 1)


def _accept_header(lines: str) -> str:
    values = [
        line.partition(":")[2].strip() for line in lines.split("\r\n") if line.lower().startswith("accept:")
    ]
    return ", ".join(values)


def _refusal(status: HTTPStatus, text: str) -> Page:
    return Page(status, f"{text}\n".encode())
