"""Answers the REST API beside gRPC, over the same services."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from foldserve.serving.transport.draining import wait_until_idle
from foldserve.serving.transport.http.app import make_app
from foldserve.serving.transport.http.calls import Calls
from foldserve.serving.web_server.connection import ConnectionLimits
from foldserve.serving.web_server.server import WebServer

if TYPE_CHECKING:
    from foldserve.serving.repository.index import ModelIndex
    from foldserve.serving.transport.backend import Backend
    from foldserve.serving.transport.settings import WireSettings

_HEAD_LIMIT_S = 10.0
# The target and all headers; as much as gRPC's metadata may be at most by default, and a margin.
_MAX_HEAD_BYTES = 64 * 1024
# An idle connection is kept for this time; clients with a pool reconnect by themselves.
_KEEP_ALIVE_S = 30
# Connections that are kept for clients who read that there are too many requests.
_MOST_SPARE = 16


class HttpTransport:
    """Answers the REST API; its methods are called on the server's main event loop.

    Args:
        backend: answers the calls.
        index: finds the models.
        settings: limits and permissions at the wire, the same as over gRPC.
        max_connections: most connections at the same time; idle ones are closed for new ones. If nearly all
            have a request under way, further requests are answered 503.
    """

    def __init__(
        self,
        backend: Backend,
        index: ModelIndex,
        settings: WireSettings,
        *,
        max_connections: int,
    ) -> None:
        self._calls = Calls(backend, settings)
        limits = ConnectionLimits(
            max_connections=max_connections,
            max_running=max(1, max_connections - min(_MOST_SPARE, max_connections // 4)),
            head_s=_HEAD_LIMIT_S,
            max_head_bytes=_MAX_HEAD_BYTES,
            keep_alive_s=_KEEP_ALIVE_S,
        )
        self._server = WebServer(
            make_app(self._calls, index),
            name="http-api",
            limits=limits,
            to_body=_to_body,
            credentials=settings.credentials,
        )

    async def start(self, host: str, port: int) -> int:
        """Start listening and return the port; if ``port`` is 0, the operating system chooses.

        Raises:
            ListenError: the address is in use or does not belong to this machine.
        """
        return await self._server.start(host, port, purpose="HTTP", advice="choose another with --http-port")

    async def drain(self, give_up_s: float) -> None:
        """Wait until the running calls are answered and no more come, or until ``give_up_s``.

        Call it in DRAINING. ``give_up_s`` is on time.monotonic's clock.
        """
        if self._server.is_running:
            calls = self._calls
            await wait_until_idle(lambda: calls.running_count > 0, lambda: calls.last_call_s, give_up_s)

    async def close(self) -> None:
        """Stop listening and close the connections."""
        await self._server.close()


def _to_body(text: str) -> tuple[bytes, bytes]:
    return b"application/json", json.dumps({"error": text}).encode()
