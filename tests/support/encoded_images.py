"""Encoded pictures for the tests."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def encode(pixels: NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    """Return uint8 pixels [H, W] or [H, W, 3] as a file of this kind."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """Return a PNG that claims this size and has next to no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


def as_elements(images: Sequence[bytes]) -> bytes:
    """Return BYTES elements as they stand in raw_input_contents."""
    return b"".join(struct.pack("<I", len(image)) + image for image in images)


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an RGB picture with detail at all sizes, the finer the weaker, as photographs have."""
    random = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128, np.float32)
    cell = max(width, height) // 2
    while cell >= 1:
        shape = (height // cell + 2, width // cell + 2)
        for channel in range(3):
            coarse = Image.fromarray(random.standard_normal(shape, dtype=np.float32))
            pixels[..., channel] += (
                cell**0.5 * 3 * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
            )
        cell //= 4
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
