"""Serves the pages for probes and Prometheus, without TLS and tokens, on the metrics port.

It runs in a thread of its own, so that no caller's message, however large, delays a probe. Slow or hostile
clients cost little: a connection has seconds to send its request and to receive the answer, requests are
small, and if there are too many connections, the oldest is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from foldserve.serving.web_server.connection import ConnectionLimits
from foldserve.serving.web_server.server import WebServer
from foldserve.text import quote

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from foldserve.serving.observability.pages import Pages

_HEAD_LIMIT_S = 5.0
_MAX_HEAD_BYTES = 8192
# The answer to a request with a body may be lost if the connection is closed before the body is read.
_BODY_LIMIT_S = 0.5


class PageServer:
    """Serves pages on a port; its methods are called on the server's main event loop.

    Args:
        pages: what is served.
        max_connections: most connections at the same time; for a new one the oldest is closed.
    """

    def __init__(self, pages: Pages, *, max_connections: int) -> None:
        self._server = WebServer(
            _make_app(pages),
            name="http",
            limits=ConnectionLimits(
                max_connections=max_connections,
                max_running=None,
                head_s=_HEAD_LIMIT_S,
                max_head_bytes=_MAX_HEAD_BYTES,
                keep_alive_s=0,
            ),
            to_body=_to_body,
            headers={"Cache-Control": "no-store"},
        )

    async def start(self, host: str, port: int) -> int:
        """Start listening and return the port; if ``port`` is 0, the operating system chooses.

        Raises:
            ListenError: the address is in use or does not belong to this machine.
        """
        advice = "choose another with --metrics-port, or switch the pages off with --no-metrics"
        return await self._server.start(host, port, purpose="metrics", advice=advice)

    async def close(self) -> None:
        """Stop listening and end the connections."""
        await self._server.close()


def _make_app(pages: Pages) -> Starlette:
    by_path = pages.by_path()

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            await _read_body(request)
            allowed = {"Allow": "GET, HEAD"}
            return PlainTextResponse("only GET and HEAD are supported\n", error.status_code, allowed)
        text = f"no page {quote(request.url.path)}; the pages are {', '.join(by_path)}\n"
        return PlainTextResponse(text, error.status_code)

    routes = [Route(path, make, methods=["GET", "HEAD"]) for path, make in by_path.items()]
    app = Starlette(routes=routes, exception_handlers={HTTPException: refuse})
    app.router.redirect_slashes = False
    return app


async def _read_body(request: Request) -> None:
    """Read a body that nobody needs, for a short time."""
    with contextlib.suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(_BODY_LIMIT_S):
            async for _ in request.stream():
                pass


def _to_body(text: str) -> tuple[bytes, bytes]:
    return b"text/plain; charset=utf-8", f"{text}\n".encode()
