"""Reads JPEG files: keeps tables and scans, drops application segments and comments."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from foldserve.errors import ImageError
from foldserve.imaging.orientation import read_orientation
from foldserve.imaging.picture import Picture, counted

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGNATURE = b"\xff\xd8\xff"

_END, _SCAN, _COMMENT = 0xD9, 0xDA, 0xFE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ARITHMETIC = frozenset(range(0xC9, 0xD0)) - {0xCC}
_APPLICATION = frozenset(range(0xE0, 0xF0))
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xDA)})
# Application segments that say how colours are stored.
_OF_COLOURS = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"

_MARKER = re.compile(rb"\xff([\x01-\xfe])")
# In a scan, 0xff followed by zero is data, and by 0xd0 to 0xd7 a restart marker.
_MARKER_AFTER_SCAN = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
# The Huffman tables of all scans take some 100 kB at most; Pillow reads quantisation tables in Python.
_MAX_TABLE_BYTES = 1024 * 1024
# Every pass of arithmetic decoding is expensive: at least 64 decisions per block, whatever the file's length.
_ARITHMETIC_WEIGHT = 16


def read_jpeg(encoded: bytes) -> Picture:
    """Return the JPEG up to its end marker, with one pass per scan.

    Raises:
        ImageError: it has no frame header, too many segments, or too large tables.
    """
    # Views: a scan of megabytes is copied once, with all that is kept.
    view = memoryview(encoded)
    kept, exif, xmp = [view[:2]], [], b""
    width = height = scan_count = table_bytes = 0
    weight, has_frame = 1, False
    for marker, start, end in counted(_segments(encoded)):
        content = encoded[start + 4 : end] if marker in _APPLICATION else b""
        if content.startswith(_EXIF):
            exif.append(content[len(_EXIF) :])
        elif content.startswith(_XMP):
            xmp = content[len(_XMP) :]
        if marker == _COMMENT or (content and not content.startswith(_OF_COLOURS.get(marker, b"-"))):
            continue
        if marker in _FRAMES and not has_frame:  # the decoder refuses a second one, or does not come to it
            has_frame = True
            height = int.from_bytes(encoded[start + 5 : start + 7])
            width = int.from_bytes(encoded[start + 7 : start + 9])
            weight = _ARITHMETIC_WEIGHT if marker in _ARITHMETIC else 1
        if marker == _SCAN:
            scan_count += 1
        else:
            table_bytes += end - start
        kept.append(view[start:end])
    if table_bytes > _MAX_TABLE_BYTES:
        raise ImageError(
            f"the JPEG has {table_bytes:,} bytes of tables; at most {_MAX_TABLE_BYTES:,} are allowed"
        )
    if not has_frame:
        raise ImageError("damaged image: the JPEG has no frame header")
    orientation = read_orientation(b"".join(exif), xmp)
    return Picture("JPEG", b"".join(kept), width, height, scan_count * weight, orientation)


def _segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment; the data of a scan belongs to its segment."""
    position = len(SIGNATURE) - 1
    while found := _MARKER.search(encoded, position):
        marker, start, end = found[1][0], found.start(), found.end()
        if marker not in _WITHOUT_LENGTH:
            # The length includes its own two bytes; some writers of metadata get it wrong.
            end += max(2, int.from_bytes(encoded[end : end + 2]))
        if marker == _SCAN:
            following = _MARKER_AFTER_SCAN.search(encoded, end)
            end = following.start() if following else len(encoded)
        yield marker, start, end
        if marker == _END:
            return
        position = end
