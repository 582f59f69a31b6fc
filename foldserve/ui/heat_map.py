"""Draws the result of an occlusion over the picture, as a PNG file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Small inputs are enlarged by a whole number, to about this length, so that each pixel stays visible.
_SIDE = 320
# A strong orange: seen on dark and light, and by people who do not tell red from green.
_HEAT = np.array([255, 110, 0], dtype=np.float64)
_MOST_OPAQUE = 0.75

_ROWS = ("upper", "middle", "lower")
_COLUMNS = ("left", "centre", "right")


def draw_heat(pixels: NDArray[np.uint8], heat: NDArray[np.float64]) -> bytes:
    """Return a PNG file: ``pixels`` uint8 [C, H, W] in grey, the more orange the nearer ``heat`` is to 1.

    ``heat`` is float64 [G, G], 0 to 1.
    """
    base = enlarged(to_image(pixels).convert("L")).convert("RGB")
    coarse = Image.fromarray(np.rint(255 * heat).astype(np.uint8))
    opacity = np.asarray(coarse.resize(base.size, Image.Resampling.BICUBIC), dtype=np.float64) / 255
    opacity = _MOST_OPAQUE * opacity[..., np.newaxis]
    blended = (1 - opacity) * np.asarray(base, dtype=np.float64) + opacity * _HEAT
    return to_png(Image.fromarray(np.rint(blended).astype(np.uint8)))


def name_place(place: tuple[int, int], cells: int) -> str:
    """Return where row and column ``place`` of a grid of ``cells`` x ``cells`` lie, such as "upper left"."""
    row, column = (min(2, 3 * at // cells) for at in place)
    if (row, column) == (1, 1):
        return "centre"
    return f"{_ROWS[row]} {_COLUMNS[column]}"


def to_image(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return ``pixels`` uint8 [C, H, W], grey or RGB, as an image."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def enlarged(image: Image.Image) -> Image.Image:
    """Return a small image enlarged by a whole number, without blurring its pixels."""
    times = max(1, _SIDE // max(image.size))
    return image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)


def to_png(image: Image.Image) -> bytes:
    """Return ``image`` as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
