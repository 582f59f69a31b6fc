"""Decompresses messages in bounded memory; gRPC decompresses a gigabyte before it checks its limit.

With grpc.per_message_decompression off, a compressed message arrives as it was sent, without a mark. Its
first bytes identify it: no protobuf message begins like gzip (0x1f would be wire type 7, which does not
exist), and none of ours like zlib (0x78 would be field 15).
"""

from __future__ import annotations

import zlib

from foldserve.serving.errors import ResourceExhaustedError

_GZIP = b"\x1f\x8b"
_DEFLATE = b"\x78"
# zlib's constant for "a gzip or a zlib header, and the largest window".
_ANY_HEADER = 32 + zlib.MAX_WBITS


def is_compressed(content: bytes) -> bool:
    """Return whether ``content`` begins like a compressed message."""
    return content[:2] == _GZIP or content[:1] == _DEFLATE


def decompress(content: bytes, max_bytes: int) -> bytes:
    """Return ``content`` decompressed, or as it is if it is damaged, for the parser to refuse.

    What is cut short or has bytes behind its end is damaged too: its beginning alone could be a message.
    Takes up to some milliseconds per MiB, without the GIL: do not call it on an event loop.

    Raises:
        ResourceExhaustedError: it decompresses to more than ``max_bytes``, where decompression stopped.
    """
    unpacking = zlib.decompressobj(_ANY_HEADER)
    try:
        decompressed = unpacking.decompress(content, max_bytes + 1)
    except zlib.error:
        return content
    if len(decompressed) > max_bytes:
        raise ResourceExhaustedError(
            f"the message's {len(content)} bytes decompress to more than {max_bytes}, the most that the "
            "server accepts: send fewer images per request, or raise the server's --max-message-mib"
        )
    return decompressed if unpacking.eof and not unpacking.unused_data else content
