"""Accepts connections, and closes others for them if there are too many."""

from __future__ import annotations

import asyncio
import logging
import time
from socket import MSG_PEEK
from typing import TYPE_CHECKING

from foldserve.serving.web_server.connection import BoundedConnection, ConnectionLimits, ConnectionState

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

# Pause before accepting again after no descriptor was free.
_ACCEPT_AGAIN_S = 0.1
# A client has this time to confirm the end of a TLS connection.
_TLS_END_S = 5.0

_log = logging.getLogger(__name__)


class Connections:
    """The connections of a port. Every method runs on one event loop.

    asyncio's own server accepts any number of them. While no descriptor is free, it logs a traceback for each
    attempt and attempts more and more often, at last without pause; this one attempts ten times per second.

    Args:
        make: returns a new connection, given what to call when it is used and when it has ended.
        limits: of this port.
        context: of TLS; None: without.
    """

    def __init__(
        self,
        make: Callable[..., BoundedConnection],
        limits: ConnectionLimits,
        context: ssl.SSLContext | None,
    ) -> None:
        self._make = make
        self._limits = limits
        self._context = context
        # Those that have sent no request yet, oldest first, with what opens them.
        self._new: dict[BoundedConnection, asyncio.Task[None]] = {}
        # The others, used longest ago first.
        self._used: dict[BoundedConnection, None] = {}

    async def accept(self, listener: socket.socket) -> None:
        """Accept connections for ever."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except OSError:
                await asyncio.sleep(_ACCEPT_AGAIN_S)
            else:
                self._take(accepted)
                await asyncio.sleep(0)  # many may wait to be accepted

    async def close(self, limit_s: float) -> None:
        """Close the connections; those whose answer is not received within ``limit_s`` are cut off."""
        for connection, opening in list(self._new.items()):
            _cut_off(connection, opening)
        for connection in list(self._used):
            connection.shutdown()
        give_up_s = time.monotonic() + limit_s
        while (self._new or self._used) and time.monotonic() < give_up_s:
            await asyncio.sleep(0.01)
        for connection in list(self._used):
            connection.transport.abort()

    def _take(self, accepted: socket.socket) -> None:
        if not self._make_room():
            accepted.close()
            return
        connection = self._make(on_used=self._note_use, on_lost=self._forget)
        opening = asyncio.ensure_future(self._open(connection, accepted))
        self._new[connection] = opening

        def end(opening: asyncio.Task[None]) -> None:
            error = None if opening.cancelled() else opening.exception()
            if error is None and not opening.cancelled():
                return
            # Not in the task itself, which does not run at all if it is cancelled before it starts.
            self._forget(connection)
            accepted.close()
            if error is not None and not isinstance(error, OSError):  # not only a client that is gone
                _log.error("accepting a connection over HTTP failed", exc_info=error)

        opening.add_done_callback(end)

    async def _open(self, connection: BoundedConnection, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        limits = {}
        context = self._context
        if context is not None:
            async with asyncio.timeout(self._limits.head_s):
                first = await _first_byte(accepted)
            if first.isalpha():  # of a method such as GET; TLS begins with 0x16
                connection.wants_tls = True  # and says so
                context = None
            else:
                limits = {"ssl_handshake_timeout": self._limits.head_s, "ssl_shutdown_timeout": _TLS_END_S}
        await loop.connect_accepted_socket(lambda: connection, accepted, ssl=context, **limits)

    def _make_room(self) -> bool:
        """Close a connection if there are too many; return False if none may be closed."""
        if len(self._new) + len(self._used) < self._limits.max_connections:
            return True
        if self._new:
            connection, opening = next(iter(self._new.items()))
            del self._new[connection]  # at once, since many may come before it has ended
            _cut_off(connection, opening)
            return True
        unused = self._longest_unused()
        if unused is None:
            return False
        del self._used[unused]
        unused.transport.abort()
        return True

    def _longest_unused(self) -> BoundedConnection | None:
        for state in (ConnectionState.IDLE, ConnectionState.RECEIVING):
            for connection in self._used:
                if connection.state is state:
                    return connection
        return next(iter(self._used)) if self._limits.max_running is None else None

    def _note_use(self, connection: BoundedConnection) -> None:
        if self._new.pop(connection, None) is None:
            if connection not in self._used:  # it was closed for another, and has not ended yet
                return
            del self._used[connection]
        self._used[connection] = None

    def _forget(self, connection: BoundedConnection) -> None:
        self._new.pop(connection, None)
        self._used.pop(connection, None)


async def _first_byte(accepted: socket.socket) -> bytes:
    """Return the first byte that a client sends, which remains to be read; b"" if it hangs up."""
    loop = asyncio.get_running_loop()
    is_readable = asyncio.Event()
    loop.add_reader(accepted, is_readable.set)
    try:
        await is_readable.wait()
    finally:
        loop.remove_reader(accepted)
    return accepted.recv(1, MSG_PEEK)


def _cut_off(connection: BoundedConnection, opening: asyncio.Task[None]) -> None:
    if opening.done():
        connection.transport.abort()
    else:
        opening.cancel()
