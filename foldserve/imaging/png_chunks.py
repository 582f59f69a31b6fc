"""Reads PNG files: keeps header, palette, transparency and the default image, drops everything else."""

from __future__ import annotations

import re
import struct
import zlib
from typing import TYPE_CHECKING

from foldserve.errors import ImageError
from foldserve.imaging.orientation import read_orientation
from foldserve.imaging.picture import Picture, counted

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_HEADER = b"IHDR"
_KEPT = frozenset({_HEADER, b"PLTE", b"tRNS"})
_KIND = re.compile(rb"[A-Za-z]{4}")
_END = b"\0\0\0\0IEND\xaeB`\x82"
_METADATA = frozenset({b"eXIf", b"tEXt", b"zTXt", b"iTXt"})
_NAMES = _EXIF_AS_TEXT, _XMP = b"Raw profile type exif\0", b"XML:com.adobe.xmp\0"
# Limit for compressed metadata; the orientation is near its beginning.
_MAX_UNPACKED_BYTES = 1024 * 1024


def read_png(encoded: bytes) -> Picture:
    """Return the default image of the PNG, with its data in one chunk.

    Raises:
        ImageError: it does not begin with its header, or has too many chunks.
        struct.error: it ends within its header.
    """
    if encoded[12:16] != _HEADER:
        raise ImageError("damaged image: the PNG does not begin with its header")
    width, height = struct.unpack_from(">II", encoded, 16)
    kept, data, metadata = [SIGNATURE], list[bytes](), dict[bytes, tuple[int, int]]()
    before = b""
    for kind, start, end in counted(_chunks(encoded)):
        if kind == b"IDAT" and (not data or before == kind):
            data.append(encoded[start + 8 : end])
        elif kind in _KEPT and not data:
            kept.append(encoded[start : end + 4])
        elif kind in _METADATA:
            metadata.setdefault(_name(kind, encoded, start + 8, end), (start, end))
        before = kind
    if data:
        # Pillow does not check the checksum of data chunks.
        kept += [struct.pack(">I", sum(map(len, data))), b"IDAT", *data, bytes(4)]
    contents = {name: _content(encoded, *metadata.get(name, (0, 0))) for name in (*_NAMES, b"eXIf")}
    exif = contents[b"eXIf"] or _from_digits(contents[_EXIF_AS_TEXT])
    orientation = read_orientation(exif, contents[_XMP])
    return Picture("PNG", b"".join([*kept, _END]), width, height, orientation=orientation)


def _chunks(encoded: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of content of each chunk, up to the first invalid one."""
    position = len(SIGNATURE)
    while position + 8 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, position)
        if not _KIND.fullmatch(kind):
            return
        end = min(position + 8 + length, len(encoded))
        yield kind, position, end
        position = end + 4


def _name(kind: bytes, encoded: bytes, start: int, end: int) -> bytes:
    """Return the keyword of a text chunk that may hold the orientation, else the kind of the chunk."""
    return next((name for name in _NAMES if encoded.startswith(name, start, end)), kind)


def _content(encoded: bytes, start: int, end: int) -> bytes:
    """Return the content of a chunk after its keyword, decompressed."""
    kind, content = encoded[start + 4 : start + 8], encoded[start + 8 : end]
    if kind in (b"tEXt", b"zTXt", b"iTXt"):
        content = content.partition(b"\0")[2]
    if kind == b"zTXt":
        return _unpack(content[1:])
    if kind == b"iTXt":  # two flags, then language and translated keyword, each ended by a zero
        text = content[2:].split(b"\0", 2)[-1]
        return _unpack(text) if content[:1] == b"\1" else text
    return content


def _unpack(content: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(content, _MAX_UNPACKED_BYTES)
    except zlib.error:
        return b""


def _from_digits(text: bytes) -> bytes:
    r"""Return the bytes that ImageMagick writes as "\nexif\n<length>\n<hexadecimal digits>"."""
    digits = b"".join(text.split(b"\n")[3:])
    try:
        return bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        return b""
