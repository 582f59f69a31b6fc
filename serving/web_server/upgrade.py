"""Reads a request that offers another protocol as if it did not.

Java's HttpClient, and through it Spring's, offers HTTP/2 in the headers of each first request
(``Upgrade: h2c``), and so does ``curl --http2``. A server may ignore the offer and answer over HTTP/1.1 (RFC
9110, section 7.8). The parser, though, takes all behind such a head for the other protocol: the body would be
lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def head_without_upgrade(
    method: bytes, target: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]
) -> bytes:
    """Return the head of a request without its offer to change the protocol.

    Args:
        method: such as POST.
        target: as the request has it, with the query.
        version: of HTTP, such as "1.1".
        headers: names in lower case, and values.
    """
    lines = [b"%s %s HTTP/%s" % (method, target, version.encode())]
    for name, value in headers:
        if name == b"connection":
            options = [option for option in value.split(b",") if option.strip().lower() != b"upgrade"]
            lines.append(b"connection: " + b",".join(options))
        elif name != b"upgrade":
            lines.append(name + b": " + value)
    return b"\r\n".join([*lines, b"", b""])
