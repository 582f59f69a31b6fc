"""Stands before the web framework: bounds requests, and lets the browser load nothing from elsewhere."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from foldserve.serving.addresses import is_loopback
from foldserve.ui.upload_folder import prune

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping
    from pathlib import Path

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Message, Receive, Send], Awaitable[None]]

# Whatever a page says, the browser then asks no other machine for anything. Gradio's own scripts are inline,
# and compile functions from text.
_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    ]
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
# Around a file in a form: boundaries, names and types.
_SLACK_BYTES = 64 * 1024
# Parts of Gradio that the page does not use: some load addresses which a caller names, others are more ways
# to run its functions.
_UNUSED = (
    *("/gradio_api/file=http", "/gradio_api/proxy=", "/file=http", "/proxy="),
    *("/gradio_api/queue/join", "/gradio_api/call", "/gradio_api/component_server"),
)
_HOST = re.compile(rb"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:[0-9]+)?")


class Guard:
    """An ASGI application around another one.

    Args:
        app: the page.
        uploads: the folder of uploaded files, which is kept small.
        max_upload_bytes: the largest file; a request may be slightly larger.
        only_loopback: refuse requests that name another host, as those of a web page elsewhere whose name was
            made to lead to this machine (DNS rebinding).
    """

    def __init__(self, app: App, *, uploads: Path, max_upload_bytes: int, only_loopback: bool) -> None:
        self._app = app
        self._uploads = uploads
        self._max_bytes = max_upload_bytes + _SLACK_BYTES
        self._only_loopback = only_loopback

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        path = scope["path"]
        if self._only_loopback and not is_loopback(_host(headers.get(b"host", b""))):
            await _refuse(send, 421, "this page is for this machine alone: open it as http://127.0.0.1")
        elif not _is_from_here(headers):
            await _refuse(
                send,
                403,
                "requests from web pages of another origin are not accepted; behind a proxy, let it pass on "
                "the header Host",
            )
        elif path.startswith(_UNUSED):
            await _refuse(send, 403, "this page has no use for that")
        elif _length(headers) > self._max_bytes:
            await _refuse(send, 413, f"the request is larger than the {self._max_bytes:,} bytes allowed")
        else:
            if path.endswith("/upload"):
                await asyncio.to_thread(prune, self._uploads)
            await self._app(scope, _bounded(receive, self._max_bytes), _with_headers(send))


def _is_from_here(headers: dict[bytes, bytes]) -> bool:
    """Whether a request is no other web page's, which a visitor's browser would make for it.

    Browsers name the page in Origin; other clients send no such header.
    """
    origin = headers.get(b"origin")
    return origin is None or origin.partition(b"://")[2] == headers.get(b"host")


def _host(given: bytes) -> str:
    """Return the name in a Host header, without port and brackets; "" if it is malformed."""
    found = _HOST.fullmatch(given.lower())
    return found[1].strip(b"[]").decode("latin-1") if found else ""


def _length(headers: dict[bytes, bytes]) -> int:
    given = headers.get(b"content-length", b"0")
    return int(given) if given.isdigit() else 0


def _bounded(receive: Receive, max_bytes: int) -> Receive:
    """Return ``receive`` that ends a body, sent without its length, once it is too large."""
    read_bytes = 0

    async def next_message() -> Message:
        nonlocal read_bytes
        message = await receive()
        read_bytes += len(message.get("body", b""))
        return {"type": "http.disconnect"} if read_bytes > max_bytes else message

    return next_message


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *_HEADERS]
        await send(message)

    return send_with_headers


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = f"{reason}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *_HEADERS,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
