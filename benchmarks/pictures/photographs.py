"""Makes JPEG files that take as long to decode as photographs of their size."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def photograph(width: int, height: int) -> bytes:
    """Return a JPEG file with detail at all sizes, the finer the weaker, as photographs have."""
    random = np.random.default_rng(0)
    pixels = np.full((height, width, 3), 128, np.float32)
    cell = max(width, height) // 2
    while cell >= 1:
        shape = (height // cell + 2, width // cell + 2)
        for channel in range(3):
            coarse = Image.fromarray(random.standard_normal(shape, dtype=np.float32))
            fine = coarse.resize((width, height), Image.Resampling.BICUBIC)
            pixels[..., channel] += 3 * cell**0.5 * np.asarray(fine)
        cell //= 4
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
