"""Bounds an HTTP connection: time and size of a request's head, and the time to receive an answer.

uvicorn bounds none of them: a client that sends a byte a minute, or that never reads, would hold a connection
for ever.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeAlias

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from foldserve.serving.web_server.upgrade import head_without_upgrade

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

# A client has this time to receive an answer, and more for a large one: as long as it takes at this rate.
_RECEIVE_LIMIT_S = 10.0
_LEAST_BYTES_PER_S = 64 * 1024
# The answer may be lost if a connection is closed with unread bytes, so they are read for this time: those of
# what is no request, and of a body that is refused. Most clients send all of it before they read the answer.
_LINGER_S = 0.5
_BODY_LINGER_S = 5.0

# Makes the content type and the body of an answer that refuses, of its text.
ToBody: TypeAlias = "Callable[[str], tuple[bytes, bytes]]"


@dataclass(frozen=True)
class ConnectionLimits:
    """What the connections to a port may take.

    Attributes:
        max_connections: most open connections; for a new one another is closed.
        max_running: most requests under way at the same time; further ones are answered 503. None: no limit;
            if all connections have a request under way, one of them is closed for a new one.
        head_s: longest time to send a request's head.
        max_head_bytes: largest head: the target and all headers.
        keep_alive_s: longest time without a request; 0: one request per connection.
    """

    max_connections: int
    max_running: int | None
    head_s: float
    max_head_bytes: int
    keep_alive_s: int


class ConnectionState(enum.Enum):
    """What a connection is doing, in the order in which connections are closed for new ones."""

    IDLE = enum.auto()  # no request, or part of its head
    RECEIVING = enum.auto()  # the answer is written; the client has not received all of it
    RUNNING = enum.auto()  # a request is under way


class BoundedConnection(HttpToolsProtocol):
    """Closes a connection that exceeds its limits; refuses large heads and what is not HTTP/1.

    Attributes:
        wants_tls: whether to refuse each request, because the port speaks TLS and the client does not.

    Args:
        limits: of this port.
        to_body: makes the body of refusals.
        on_used: called when a request begins and when it is answered.
        on_lost: called when the connection has ended.
    """

    def __init__(
        self,
        *arguments: Any,
        limits: ConnectionLimits,
        to_body: ToBody,
        on_used: Callable[[BoundedConnection], None],
        on_lost: Callable[[BoundedConnection], None],
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self.wants_tls = False
        self._limits = limits
        self._to_body = to_body
        self._on_used = on_used
        self._on_lost = on_lost
        self._own_app = self.app
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._receive_timer: asyncio.TimerHandle | None = None
        self._is_in_message = False
        self._is_discarding = False
        # Of a request that offers another protocol: its head without the offer.
        self._plain_head: bytes | None = None

    @property
    def state(self) -> ConnectionState:
        """What the connection is doing."""
        if self.cycle is not None and not self.cycle.response_complete:
            return ConnectionState.RUNNING
        if self.flow is not None and self.flow.write_paused:
            return ConnectionState.RECEIVING
        return ConnectionState.IDLE

    def connection_made(self, transport: Any) -> None:
        """Expect a head."""
        super().connection_made(transport)
        # `pause_writing` then comes as soon as something remains unsent. At 0 it would always come under TLS.
        transport.set_write_buffer_limits(high=1)
        self._expect_head()

    def on_message_begin(self) -> None:
        """Expect the head of a further request on the connection."""
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        """Start the request, or refuse it."""
        method = self.parser.get_method()
        if self.parser.should_upgrade() and method != b"CONNECT":
            version = self.parser.get_http_version()
            self._plain_head = head_without_upgrade(method, self.url, version, self.headers)
            return
        self._end_head()
        self._is_in_message = True
        refusal = self._refusal()
        self.app = self._own_app if refusal is None else _refusing(*refusal, self._to_body)
        super().on_headers_complete()
        if refusal is not None or not self._limits.keep_alive_s:
            self._end_with_answer()
        elif self.parser.get_http_version() == "1.0" and self.parser.should_keep_alive():
            # The client asks for it, as `ab -k` does, and has to be told; uvicorn has none with HTTP/1.0.
            self.cycle.keep_alive = True
            self.cycle.default_headers = [*self.cycle.default_headers, (b"connection", b"keep-alive")]
        # It has all that uvicorn's cycle uses.
        self.cycle.transport = _Output(self.transport, self._close_after_answer)  # type: ignore[assignment]
        self._on_used(self)

    def on_message_complete(self) -> None:
        """Expect the next head, if the request was answered before all of it came."""
        if self._plain_head is not None:  # it is read again
            return
        self._is_in_message = False
        super().on_message_complete()
        if self.state is not ConnectionState.RUNNING:
            self._end_head()
            self._expect_head()

    def on_response_complete(self) -> None:
        """Wait for the rest of the request if there is some, then for the next one."""
        super().on_response_complete()
        if self._is_discarding:
            self._unset_keepalive_if_required()
        # Unless what comes is the next request, which has its own limit.
        elif self._is_in_message and self.state is not ConnectionState.RUNNING:
            self._expect_head()
        self._on_used(self)

    def data_received(self, data: bytes) -> None:
        """Read on, unless the head is too large."""
        if self._is_discarding:
            return
        if self._head_timer is None and not self._is_in_message:
            self._expect_head()  # also for empty lines before a head, which begin no message
        self._head_bytes += len(data)
        self._parse(data)
        is_in_head = self._head_timer is not None and not self._is_in_message
        if is_in_head and self._head_bytes > self._limits.max_head_bytes:
            if self.state is ConnectionState.RUNNING:  # the request before it on the same connection
                self.transport.close()
            else:
                self._refuse_at_once(*self._too_large())

    def pause_writing(self) -> None:
        """Wait for the client to receive what was written."""
        super().pause_writing()
        limit_s = _RECEIVE_LIMIT_S + self.transport.get_write_buffer_size() / _LEAST_BYTES_PER_S
        self._receive_timer = self.loop.call_later(limit_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop waiting: the client has received all of it."""
        super().resume_writing()
        self._end_receiving()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._end_head()
        self._end_receiving()
        super().connection_lost(exc)
        self._on_lost(self)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's words do not say what to do
        """Refuse what cannot be parsed; whole requests before it are answered first."""
        if self.state is not ConnectionState.RUNNING:
            self._refuse_at_once(*_not_http())
        elif not self.cycle.more_body:  # perhaps a body that is longer than its Content-Length
            self._is_discarding = True
            self._end_with_answer()
        elif self.cycle.response_started or self.pipeline:
            self.transport.close()
        else:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            text = "the request's chunks are malformed: each needs its size; or send a Content-Length"
            self._refuse_at_once(HTTPStatus.BAD_REQUEST, text)

    def _parse(self, data: bytes) -> None:
        """Parse ``data`` as uvicorn does, but answer over HTTP/1.1 what offers another protocol."""
        self._unset_keepalive_if_required()
        rest: bytes | memoryview = data
        try:
            while rest:
                rest = self._feed(rest)
        except httptools.HttpParserError:
            self.send_400_response("")

    def _feed(self, data: bytes | memoryview) -> bytes | memoryview:
        """Parse ``data`` up to the end of a head that offers another protocol, and return the rest."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            head, self._plain_head = self._plain_head, None
            if head is not None:  # not of CONNECT, which is refused
                self.parser = httptools.HttpRequestParser(self)  # the other one remembers the offer
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
                self.parser.feed_data(head)
                return memoryview(data)[upgrade.args[0] :]
        return b""

    def _refusal(self) -> tuple[HTTPStatus, str] | None:
        """Return status and text if the request whose head is complete is not passed on."""
        if self.wants_tls:
            return HTTPStatus.BAD_REQUEST, "this port speaks TLS; call it with https://"
        if not self.parser.get_http_version().startswith("1."):
            return _not_http()
        # Counted again: what came with the rest of a message, at once, is not in `_head_bytes`.
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._limits.max_head_bytes:
            return self._too_large()
        most = self._limits.max_running
        if most is not None and len(self.tasks) >= most:
            text = f"{most:,} requests are under way, and no more are accepted; try again"
            return HTTPStatus.SERVICE_UNAVAILABLE, text
        return None

    def _too_large(self) -> tuple[HTTPStatus, str]:
        text = f"the request's head is larger than the {self._limits.max_head_bytes:,} bytes allowed"
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text

    def _refuse_at_once(self, status: HTTPStatus, text: str) -> None:
        """Answer what is no complete request, and read no more of it."""
        content_type, body = self._to_body(text)
        headers = {
            **dict(self.server_state.default_headers),
            b"content-type": content_type,
            b"content-length": str(len(body)).encode(),
            b"connection": b"close",
        }
        lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
        lines += [name + b": " + value for name, value in headers.items()]
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        self._close_after(_LINGER_S)

    def _end_with_answer(self) -> None:
        """Let the answer to the last request end the connection."""
        self.cycle.keep_alive = False
        # Older releases of uvicorn do not add it by themselves.
        self.cycle.default_headers = [*self.cycle.default_headers, (b"connection", b"close")]

    def _close_after_answer(self) -> None:
        """Close the connection, once its answer is written; a client that is still sending receives it."""
        if self._is_in_message or self.pipeline:
            self.pipeline.clear()
            self._close_after(_BODY_LINGER_S)
        else:
            self.transport.close()

    def _close_after(self, linger_s: float) -> None:
        """Say that no more is sent, and close after ``linger_s``; what comes until then is not looked at."""
        self._is_discarding = True
        self._end_head()
        self.flow.resume_reading()
        if self.transport.can_write_eof():  # not under TLS
            self.transport.write_eof()
        self.loop.call_later(linger_s, self.transport.close)

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_bytes = 0
            self._head_timer = self.loop.call_later(self._limits.head_s, self.transport.close)

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_receiving(self) -> None:
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None


class _Output:
    """The transport of one request, which uvicorn closes as soon as the answer is written.

    Args:
        transport: of the connection.
        close: what to do instead.
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close


def _not_http() -> tuple[HTTPStatus, str]:
    return HTTPStatus.BAD_REQUEST, "this is not an HTTP/1.1 request; gRPC has another port"


def _refusing(status: HTTPStatus, text: str, to_body: ToBody) -> Any:
    """Return an ASGI application that answers ``status``."""
    content_type, body = to_body(text)
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers.append((b"retry-after", b"1"))

    async def refuse(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status.value, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return refuse
