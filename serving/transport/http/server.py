"""Runs uvicorn on a thread and an event loop of its own, beside gRPC, over the same services."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING

import uvicorn

from foldserve.serving.addresses import listening_sockets
from foldserve.serving.errors import ListenError
from foldserve.serving.transport.draining import wait_until_idle
from foldserve.serving.transport.http.app import make_app
from foldserve.serving.transport.http.calls import Calls
from foldserve.serving.web_server.connection import BoundedProtocol

if TYPE_CHECKING:
    import socket
    import ssl

    from foldserve.serving.repository.index import ModelIndex
    from foldserve.serving.security.certificate import ServerCredentials
    from foldserve.serving.transport.backend import Backend
    from foldserve.serving.transport.settings import WireSettings

# An idle connection is kept for this time; clients with a pool reconnect by themselves.
_KEEP_ALIVE_S = 30
# Time to close once every accepted request is answered.
_CLOSE_S = 1
# A new certificate is used within this time.
_CERTIFICATE_POLL_S = 1.0


class HttpTransport:
    """Answers the REST API; its methods are called on the server's main event loop.

    Args:
        backend: answers the calls.
        index: finds the models.
        settings: limits and permissions at the wire, the same as over gRPC.
        max_connections: most connections at the same time; further ones are answered 503.
    """

    def __init__(
        self,
        backend: Backend,
        index: ModelIndex,
        settings: WireSettings,
        *,
        max_connections: int,
    ) -> None:
        # uvicorn reports each request that is not HTTP, and its own start and end.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._calls = Calls(backend, settings)
        self._credentials = settings.credentials
        self._server = uvicorn.Server(
            uvicorn.Config(
                make_app(self._calls, index),
                http=BoundedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=max_connections,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_CLOSE_S,
            )
        )
        self._thread: threading.Thread | None = None

    async def start(self, host: str, port: int) -> int:
        """Start listening and return the port; if ``port`` is 0, the operating system chooses.

        Raises:
            ListenError: the address is in use or does not belong to this machine.
        """
        try:
            listeners = listening_sockets(host, port)
        except OSError as error:
            raise ListenError(
                f"cannot listen on {host}:{port} for HTTP: another server uses the port, or the address does "
                "not belong to this machine; choose another with --http-port"
            ) from error
        bound: int = listeners[0].getsockname()[1]
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listeners)), name="http-api", daemon=True
        )
        self._thread.start()
        return bound

    async def drain(self, give_up_s: float) -> None:
        """Wait until the running calls are answered and no more come, or until ``give_up_s``.

        Call it in DRAINING. ``give_up_s`` is on time.monotonic's clock.
        """
        if self._thread is not None:
            calls = self._calls
            await wait_until_idle(lambda: calls.running_count > 0, lambda: calls.last_call_s, give_up_s)

    async def close(self) -> None:
        """Stop listening and close the connections."""
        if self._thread is None:
            return
        self._server.should_exit = True
        give_up_s = time.monotonic() + 3 * _CLOSE_S
        while self._thread.is_alive() and time.monotonic() < give_up_s:
            await asyncio.sleep(0.02)

    async def _serve(self, listeners: list[socket.socket]) -> None:
        config = self._server.config
        config.load()
        following = None
        if self._credentials is not None:
            config.ssl = self._credentials.to_context()
            following = asyncio.ensure_future(_follow(self._credentials, config.ssl))
        try:
            await self._server.serve(sockets=listeners)
        finally:
            if following is not None:
                following.cancel()
            for listener in listeners:
                with contextlib.suppress(OSError):
                    listener.close()


async def _follow(credentials: ServerCredentials, context: ssl.SSLContext) -> None:
    """Use a new certificate for new connections, soon after its files have changed."""
    used = credentials.current()
    while True:
        await asyncio.sleep(_CERTIFICATE_POLL_S)
        current = await asyncio.to_thread(credentials.current)
        if current is not used:
            used = current
            credentials.load_into(context)
