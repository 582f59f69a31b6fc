"""Reads GIF, WebP and BMP files: keeps the first frame of an animation."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from foldserve.errors import ImageError
from foldserve.imaging.orientation import read_orientation
from foldserve.imaging.picture import Picture, counted

if TYPE_CHECKING:
    from collections.abc import Iterator

_GIF_EXTENSION, _GIF_IMAGE, _GIF_END, _GIF_CONTROL = 0x21, 0x2C, 0x3B, 0xF9
# Flags of an extended WebP for colour profile, EXIF and XMP, which are dropped.
_WEBP_METADATA = 0x20 | 0x08 | 0x04
_WEBP_KEPT = frozenset({b"VP8X", b"ANIM", b"ALPH", b"VP8 ", b"VP8L"})
_BMP_OLD_HEADER_BYTES = 12
_BMP_RUN_LENGTHS = (1, 2)  # 8-bit and 4-bit run lengths
# Pillow decodes run lengths in Python, which blocks all threads: 0.4 s for this many pixels.
_MAX_RUN_LENGTH_PIXELS = 2 * 1024 * 1024


def read_gif(encoded: bytes) -> Picture:
    """Return the GIF with its first image and the extensions that this needs.

    Raises:
        ImageError: it has no image, or too many blocks before it.
        struct.error: it ends within its header.
    """
    width, height, flags = struct.unpack_from("<HHB", encoded, 6)
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    kept = [encoded[:position]]
    for start, end in counted(_gif_blocks(encoded, position)):
        if encoded[start] == _GIF_IMAGE:
            left, top, *size = struct.unpack_from("<4H", encoded, start + 1)
            kept.append(encoded[start:])  # the decoder stops after the first image
            width, height = max(width, left + size[0]), max(height, top + size[1])
            return Picture("GIF", b"".join(kept), width, height)
        if encoded[start : start + 2] == bytes([_GIF_EXTENSION, _GIF_CONTROL]):
            kept.append(encoded[start:end])
    raise ImageError("damaged image: the GIF has no image")


def _gif_blocks(encoded: bytes, position: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of each extension and of the first image; skips stray bytes between them."""
    while position < len(encoded) and encoded[position] != _GIF_END:
        end = position + 1
        if encoded[position] == _GIF_EXTENSION:
            end += 1
            while end < len(encoded) and encoded[end]:
                end += 1 + encoded[end]
            end += 1
        yield position, end
        position = end


def read_webp(encoded: bytes) -> Picture:
    """Return the WebP with only its first frame.

    Raises:
        ImageError: its first chunk is of an unknown kind, or it has too many chunks.
        struct.error: it ends within its header.
    """
    width, height = _webp_size(encoded)
    kept, has_frame = list[bytes](), False
    metadata = {b"EXIF": b"", b"XMP ": b""}
    for kind, start, end in counted(_webp_chunks(encoded)):
        if kind in _WEBP_KEPT or (kind == b"ANMF" and not has_frame):
            kept.append(encoded[start:end])
            has_frame |= kind == b"ANMF"
        elif kind in metadata:
            metadata[kind] = encoded[start + 8 : end]
    if kept[0].startswith(b"VP8X"):
        kept[0] = kept[0][:8] + bytes([kept[0][8] & ~_WEBP_METADATA]) + kept[0][9:]
    chunks = b"".join(kept)
    content = struct.pack("<4sI4s", b"RIFF", 4 + len(chunks), b"WEBP") + chunks
    orientation = read_orientation(metadata[b"EXIF"], metadata[b"XMP "])
    return Picture("WEBP", content, width, height, orientation=orientation)


def _webp_size(encoded: bytes) -> tuple[int, int]:
    kind = encoded[12:16]
    if kind == b"VP8X":
        return int.from_bytes(encoded[24:27], "little") + 1, int.from_bytes(encoded[27:30], "little") + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", encoded, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", encoded, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise ImageError("damaged image: the first chunk of the WebP is not VP8, VP8L or VP8X")


def _webp_chunks(encoded: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of each chunk, including its padding."""
    position = 12
    while position + 8 <= len(encoded):
        kind, length = struct.unpack_from("<4sI", encoded, position)
        end = position + 8 + length + (length & 1)
        yield kind, position, end
        position = end


def read_bmp(encoded: bytes) -> Picture:
    """Return the BMP unchanged.

    Raises:
        ImageError: it is run-length encoded and too large.
        struct.error: it ends within its header.
    """
    (header_bytes,) = struct.unpack_from("<I", encoded, 14)
    compression = 0
    if header_bytes == _BMP_OLD_HEADER_BYTES:
        width, height = struct.unpack_from("<HH", encoded, 18)
    else:
        width, height, compression = struct.unpack_from("<ii4xI", encoded, 18)
    picture = Picture("BMP", encoded, abs(width), abs(height))
    cost = max(picture.pixel_count, len(encoded))
    if compression in _BMP_RUN_LENGTHS and cost > _MAX_RUN_LENGTH_PIXELS:
        raise ImageError(
            f"a run-length encoded BMP may have {_MAX_RUN_LENGTH_PIXELS:,} pixels and bytes at most; this "
            f"one has {picture.width}x{picture.height} pixels in {len(encoded):,} bytes: save it as PNG"
        )
    return picture
