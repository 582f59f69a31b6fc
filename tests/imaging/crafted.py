"""Image files that no encoder writes: odd metadata, and files that are small and take long."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

ORIENTATION = 0x0112
SHORT, LONG, RATIONAL, SSHORT, SRATIONAL, FLOAT, DOUBLE = 3, 4, 5, 8, 10, 11, 12


def encode(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def tiff(*entries: tuple[int, int, int, bytes], order: str = "<", behind: bytes = b"") -> bytes:
    """A TIFF structure as EXIF is: its first directory with ``entries`` (tag, type, count, four bytes)."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    directory = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    return head + struct.pack(f"{order}H", len(entries)) + directory + bytes(4) + behind


def orientation(value: int, kind: int = SHORT, order: str = "<") -> tuple[int, int, int, bytes]:
    content = struct.pack(
        f"{order}I" if kind == LONG else f"{order}HH", *([value] if kind == LONG else [value, 0])
    )
    return (ORIENTATION, kind, 1, content)


def segment(content: bytes, marker: int = 0xE1) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def with_segment(jpeg: bytes, content: bytes, marker: int = 0xE1) -> bytes:
    """``jpeg`` with one more segment at its beginning."""
    return jpeg[:2] + segment(content, marker) + jpeg[2:]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunks(png: bytes, *chunks: tuple[bytes, bytes], at_end: bool = False) -> bytes:
    """``png`` with more chunks, behind its header or before its end."""
    position = len(png) - 12 if at_end else 33
    return png[:position] + b"".join(chunk(*each) for each in chunks) + png[position:]


def with_riff_chunks(webp: bytes, chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """An extended ``webp`` with more chunks at its end."""
    added = b"".join(
        kind + struct.pack("<I", len(content)) + content + bytes(len(content) & 1) for kind, content in chunks
    )
    content = webp[8:20] + bytes([webp[20] | 0x0C]) + webp[21:] + added  # it has EXIF and XMP, the flags say
    return b"RIFF" + struct.pack("<I", len(content)) + content


def jpeg_of_scans(side: int, scan_count: int) -> bytes:
    """A grey progressive JPEG whose last scan is there ``scan_count`` times more."""
    content = encode(Image.new("L", (side, side), 128), "JPEG", progressive=True, quality=50)
    start = content.rindex(b"\xff\xda")
    tables = content.rindex(b"\xff\xc4", 0, start)
    return content[:-2] + content[tables:-2] * scan_count + content[-2:]
