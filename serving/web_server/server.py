"""Runs an ASGI application by uvicorn, on a thread and an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn

from foldserve.serving.addresses import listening_sockets
from foldserve.serving.errors import ListenError
from foldserve.serving.web_server.connection import BoundedConnection, ConnectionLimits, ToBody
from foldserve.serving.web_server.connections import Connections

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Mapping

    from foldserve.serving.security.certificate import ServerCredentials

# Time to close once every accepted request is answered.
_CLOSE_S = 1
_TICK_S = 1.0
# A new certificate is used within this time.
_CERTIFICATE_POLL_S = 1.0


class WebServer:
    """Answers HTTP/1.1 on a port; its methods are called on the server's main event loop.

    Args:
        app: an ASGI application; it runs on the event loop of this server's own thread.
        name: of the thread.
        limits: of the connections.
        to_body: makes the body of what is refused before the application sees it.
        headers: in every answer.
        credentials: of TLS; None: without. New certificates are followed.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        *,
        name: str,
        limits: ConnectionLimits,
        to_body: ToBody,
        headers: Mapping[str, str] | None = None,
        credentials: ServerCredentials | None = None,
    ) -> None:
        # uvicorn reports each request that is not HTTP, and its own start and end.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._credentials = credentials
        config = uvicorn.Config(
            app,
            interface="asgi3",
            http=BoundedConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # A caller is who is connected, as over gRPC; anyone can write the header X-Forwarded-For.
            proxy_headers=False,
            headers=list((headers or {}).items()),
            timeout_keep_alive=limits.keep_alive_s,
        )
        self._server = _Server(config, limits, to_body)
        self._name = name
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        """Whether it has been started."""
        return self._thread is not None

    async def start(self, host: str, port: int, *, purpose: str, advice: str) -> int:
        """Start listening and return the port; if ``port`` is 0, the operating system chooses.

        Args:
            host: an address, or a name that resolves to some of this machine's.
            port: the port on all of them.
            purpose: what the port is for, in the message of an error.
            advice: what to do about the error.

        Raises:
            ListenError: the address is in use or does not belong to this machine.
        """
        try:
            listeners = listening_sockets(host, port)
        except OSError as error:
            raise ListenError(
                f"cannot listen on {host}:{port} for {purpose}: another server uses the port, or the address "
                f"does not belong to this machine; {advice}"
            ) from error
        bound: int = listeners[0].getsockname()[1]
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listeners)), name=self._name, daemon=True
        )
        self._thread.start()
        return bound

    async def close(self) -> None:
        """Stop listening and close the connections."""
        if self._thread is None:
            return
        self._server.stop()
        give_up_s = time.monotonic() + 3 * _CLOSE_S
        while self._thread.is_alive() and time.monotonic() < give_up_s:
            await asyncio.sleep(0.02)

    async def _serve(self, listeners: list[socket.socket]) -> None:
        following = None
        if self._credentials is not None:
            context = self._credentials.to_context()
            self._server.context = context
            following = asyncio.ensure_future(_follow(self._credentials, context))
        try:
            await self._server.serve(sockets=listeners)
        finally:
            if following is not None:
                following.cancel()
            for listener in listeners:
                with contextlib.suppress(OSError):
                    listener.close()


class _Server(uvicorn.Server):
    """uvicorn with bounded connections.

    Attributes:
        context: of TLS; set it before the start.
    """

    def __init__(self, config: uvicorn.Config, limits: ConnectionLimits, to_body: ToBody) -> None:
        super().__init__(config)
        self.context: ssl.SSLContext | None = None
        self._limits = limits
        self._to_body = to_body
        self._accepting: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Let `serve` return; may be called from another thread."""
        self.should_exit = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._stopped.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections on ``sockets``."""
        await self.lifespan.startup()
        self._loop = asyncio.get_running_loop()
        make = partial(
            BoundedConnection,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            limits=self._limits,
            to_body=self._to_body,
        )
        self._connections = Connections(make, self._limits, self.context)
        self._accepting = [
            asyncio.ensure_future(self._connections.accept(listener)) for listener in sockets or []
        ]
        self.servers = []  # asyncio's own, of which there are none
        self.started = True

    async def main_loop(self) -> None:
        """Wait for `stop`, and set the date header each second; uvicorn itself wakes ten times as often."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._stopped.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, and close those that there are."""
        for accepting in self._accepting:
            accepting.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for listener in sockets or []:
            listener.close()
        await self._connections.close(_CLOSE_S)
        if running := set(self.server_state.tasks):  # they learn that their callers are gone
            await asyncio.wait(running, timeout=_CLOSE_S)


async def _follow(credentials: ServerCredentials, context: ssl.SSLContext) -> None:
    """Use a new certificate for new connections, soon after its files have changed."""
    used = credentials.current()
    while True:
        await asyncio.sleep(_CERTIFICATE_POLL_S)
        current = await asyncio.to_thread(credentials.current)
        if current is not used:
            used = current
            credentials.load_into(context)
