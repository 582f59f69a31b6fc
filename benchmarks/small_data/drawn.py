"""Draws data sets: letters in the fonts of this machine, textures, and small scenes in colour."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.small_data.image_folder import TEST_COUNT, DataUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    _Images = Iterator[tuple[str, str, str, Image.Image]]

_FONTS = Path("/usr/share/fonts")
_LETTERS = "ABEGKPRS35"
# The rarest a twelfth of the commonest, of 500.
_TEXTURES = {"stripes": 240, "checks": 120, "dots": 80, "rings": 40, "noise": 20}
_SHAPES = ("disc", "ring", "square", "frame", "triangle", "cross", "star", "arrow", "crescent", "bars")


def glyphs(count: int) -> _Images:
    """Yield letters and digits in any font, turned and moved, on dark and noisy grey; 48 pixels.

    Raises:
        DataUnavailableError: there are no fonts.
    """
    fonts = sorted(_FONTS.rglob("*.ttf"))
    if not fonts:
        raise DataUnavailableError(f"no fonts in {_FONTS}; install fonts-dejavu")
    rng = np.random.default_rng(0)
    for index in range(count + TEST_COUNT):
        letter = _LETTERS[index % len(_LETTERS)]
        font = ImageFont.truetype(str(fonts[rng.integers(len(fonts))]), int(rng.integers(22, 36)))
        image = Image.new("L", (48, 48), int(rng.integers(0, 90)))
        place = tuple(24 + rng.integers(-5, 6, 2))
        ImageDraw.Draw(image).text(place, letter, int(rng.integers(150, 256)), font, anchor="mm")
        turned = image.rotate(
            float(rng.uniform(-20, 20)), Image.Resampling.BILINEAR, fillcolor=image.getpixel((0, 0))
        )
        noisy = np.asarray(turned, np.float64) + rng.normal(0, 12, (48, 48))
        yield _split(index, count), letter, f"{index:05}.png", _image(noisy)


def textures(count: int) -> _Images:
    """Yield textures in colour as JPEG files of 60 to 110 pixels, of classes of unequal size."""
    rng = np.random.default_rng(0)
    total = sum(_TEXTURES.values())
    for split, images in (("train", count), ("test", TEST_COUNT)):
        for label, share in _TEXTURES.items():
            for index in range(images * share // total):
                height, width = rng.integers(60, 111, 2)
                shades = _texture(label, int(height), int(width), rng)[:, :, None]
                dark, light = rng.integers(0, 140, 3), rng.integers(110, 256, 3)
                pixels = dark + shades * (light - dark) + rng.normal(0, 18, (height, width, 3))
                yield split, label, f"{index:05}.jpg", _image(pixels)


def scenes(count: int) -> _Images:
    """Yield shapes of any size, place, turn and colour before uneven backgrounds; RGB of 32 pixels.

    They take the place of subsets of CIFAR-10, which no package registry has.
    """
    rng = np.random.default_rng(0)
    for index in range(count + TEST_COUNT):
        shape = _SHAPES[index % len(_SHAPES)]
        coarse = rng.integers(0, 256, (int(rng.integers(2, 7)), int(rng.integers(2, 7)), 3), np.uint8)
        background = Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC)
        mask = _shape(shape, float(rng.uniform(5, 11)), rng.uniform(11, 21, 2), float(rng.uniform(-25, 25)))
        colour = Image.new("RGB", (32, 32), tuple(int(each) for each in rng.integers(0, 256, 3)))
        pixels = np.asarray(Image.composite(colour, background, mask), np.float64)
        yield _split(index, count), shape, f"{index:05}.png", _image(pixels + rng.normal(0, 14, (32, 32, 3)))


def _texture(label: str, height: int, width: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a texture of 0..1 [height, width]."""
    row, column = np.mgrid[:height, :width].astype(np.float64)
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 16)
    across = (row * np.sin(angle) + column * np.cos(angle)) / period
    along = (row * np.cos(angle) - column * np.sin(angle)) / period
    shades: NDArray[np.float64]
    if label == "stripes":
        shades = 0.5 + 0.5 * np.sin(2 * np.pi * across)
    elif label == "checks":
        shades = (np.floor(2 * across) + np.floor(2 * along)) % 2
    elif label == "dots":
        shades = ((across % 1 - 0.5) ** 2 + (along % 1 - 0.5) ** 2 < 0.09).astype(np.float64)
    elif label == "rings":
        centre_row, centre_column = height * rng.uniform(0.2, 0.8), width * rng.uniform(0.2, 0.8)
        distance = np.hypot(row - centre_row, column - centre_column)
        shades = 0.5 + 0.5 * np.sin(2 * np.pi * distance / period)
    else:
        coarse = rng.random((height // 6 + 1, width // 6 + 1))
        shades = np.kron(coarse, np.ones((6, 6)))[:height, :width].astype(np.float64)
    return shades


def _shape(name: str, radius: float, centre: NDArray[np.float64], turn_degrees: float) -> Image.Image:
    """Return a mask of a shape, drawn at four times the size and reduced, so that its edges are smooth."""
    scale = 4
    mask = Image.new("L", (32 * scale, 32 * scale), 0)
    draw = ImageDraw.Draw(mask)
    x, y, r = 16 * scale, 16 * scale, radius * scale
    box = (x - r, y - r, x + r, y + r)
    if name in ("disc", "ring", "crescent"):
        draw.ellipse(box, fill=255)
    if name == "ring":
        draw.ellipse((x - 0.6 * r, y - 0.6 * r, x + 0.6 * r, y + 0.6 * r), fill=0)
    if name == "crescent":
        draw.ellipse((x - 0.4 * r, y - r, x + 1.4 * r, y + 0.8 * r), fill=0)
    if name in ("square", "frame"):
        draw.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=255)
    if name == "frame":
        draw.rectangle((x - 0.5 * r, y - 0.5 * r, x + 0.5 * r, y + 0.5 * r), fill=0)
    if name in ("triangle", "star", "arrow"):
        draw.polygon([(x + r * dx, y + r * dy) for dx, dy in _CORNERS[name]], fill=255)
    if name == "cross":
        draw.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), fill=255)
        draw.rectangle((x - 0.3 * r, y - r, x + 0.3 * r, y + r), fill=255)
    if name == "bars":
        for top in (-0.9, -0.2, 0.5):
            draw.rectangle((x - 0.9 * r, y + top * r, x + 0.9 * r, y + (top + 0.4) * r), fill=255)
    shift = tuple((np.asarray(centre) - 16) * scale)
    moved = mask.rotate(turn_degrees, Image.Resampling.BILINEAR, translate=(int(shift[0]), int(shift[1])))
    return moved.resize((32, 32), Image.Resampling.BOX)


# In units of the radius, from the centre.
_CORNERS = {
    "triangle": [(0.0, -1.0), (0.9, 0.8), (-0.9, 0.8)],
    "arrow": [(-1, -0.25), (0.1, -0.25), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.25), (-1, 0.25)],
    "star": [
        (math.sin(angle) * (1 if tip % 2 == 0 else 0.4), -math.cos(angle) * (1 if tip % 2 == 0 else 0.4))
        for tip, angle in enumerate(math.pi * np.arange(10) / 5)
    ],
}


def _split(index: int, train_count: int) -> str:
    return "train" if index < train_count else "test"


def _image(pixels: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
