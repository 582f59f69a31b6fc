"""Reads a request's body: bounded in size and time, decompressed if it says that it is compressed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from foldserve.serving.errors import InvalidArgumentError, ResourceExhaustedError
from foldserve.serving.transport.compression import decompress, is_compressed
from foldserve.serving.transport.http.statuses import BodyTooLargeError, SlowBodyError
from foldserve.text import quote

if TYPE_CHECKING:
    from starlette.requests import Request

    from foldserve.serving.services.message_limit import MessageLimit

# 32 MiB arrive in this time at 10 Mbit/s.
_BODY_LIMIT_S = 30.0


async def read_body(request: Request, limit: MessageLimit) -> bytes:
    """Return the body, decompressed.

    Raises:
        BodyTooLargeError: it is larger than ``limit``, as it arrives or decompressed.
        SlowBodyError: it did not arrive within 30 s.
        InvalidArgumentError: its Content-Encoding is unknown, or it is damaged.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and not limit.allows(int(declared)):
        raise _too_large(f"{declared} bytes", limit)
    content = bytearray()
    try:
        async with asyncio.timeout(_BODY_LIMIT_S):
            async for part in request.stream():
                content += part
                if not limit.allows(len(content)):
                    raise _too_large(f"more than {limit.max_bytes()} bytes", limit)
    except TimeoutError:
        raise SlowBodyError(
            f"{len(content)} bytes of the body arrived within {_BODY_LIMIT_S:.0f} s; send it faster, or "
            "fewer images per request"
        ) from None
    return await _decompressed(bytes(content), request, limit)


async def _decompressed(content: bytes, request: Request, limit: MessageLimit) -> bytes:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return content
    if encoding not in ("gzip", "x-gzip", "deflate"):  # RFC 9110, section 8.4.1.3, has the second name
        raise InvalidArgumentError(
            f"the body has Content-Encoding {quote(encoding)}; send gzip, deflate or none"
        )
    if not is_compressed(content):
        raise InvalidArgumentError(f"the body is not {encoding}, as its Content-Encoding says")
    try:
        # In a thread: it takes up to some milliseconds per MiB.
        decompressed = await asyncio.to_thread(decompress, content, limit.max_bytes())
    except ResourceExhaustedError as error:
        raise BodyTooLargeError(str(error)) from None
    if decompressed is content:
        raise InvalidArgumentError(
            f"the body's {encoding} is damaged, or part of it is missing; send it again"
        )
    return decompressed


def _too_large(size: str, limit: MessageLimit) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"the body has {size}; the server accepts at most {limit.max_bytes()}: send fewer images per "
        "request, or raise the server's --max-message-mib"
    )
