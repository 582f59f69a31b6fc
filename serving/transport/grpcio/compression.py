"""Compressed messages, decompressed here and not by gRPC, which unpacks a gigabyte before it looks at its limit.

With grpc.per_message_decompression off a compressed message arrives as it was sent, and unmarked. Its first
bytes tell: no protobuf message begins as gzip does (0x1f would be wire type 7, which there is none of), and
none of ours as zlib does (0x78 would be field 15).
"""

from __future__ import annotations

import zlib

from foldserve.serving.errors import ResourceExhaustedError

_GZIP = b"\x1f\x8b"
_DEFLATE = b"\x78"
# zlib's constant for "either header, gzip's or zlib's, and the largest window".
_ANY_HEADER = 32 + zlib.MAX_WBITS


def is_compressed(content: bytes) -> bool:
    """Tell whether ``content`` begins as a compressed message does."""
    return content[:2] == _GZIP or content[:1] == _DEFLATE


def decompress(content: bytes, max_bytes: int) -> bytes:
    """Return what ``content`` unpacks to; itself where it is damaged, for the parser to refuse.

    It takes up to some milliseconds a MiB, without the interpreter's lock: not for an event loop.

    Raises:
        ResourceExhaustedError: it unpacks to more than ``max_bytes``, of which no more was decompressed.
    """
    try:
        decompressed = zlib.decompressobj(_ANY_HEADER).decompress(content, max_bytes + 1)
    except zlib.error:
        return content
    if len(decompressed) > max_bytes:
        raise ResourceExhaustedError(
            f"the message's {len(content)} bytes unpack to more than {max_bytes}, which is the most that is "
            "taken: send fewer images at a time, or raise the server's --max-message-mib"
        )
    return decompressed
