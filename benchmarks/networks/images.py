"""Draws seeded images with structure: squares, smooth colours, gratings and noise, taking turns.

The export proves its file on images of its own, squares and noise; networks are calibrated and judged on
these, each with a seed of its own, so that no image is seen twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as for most networks of both packages
STD = (0.229, 0.224, 0.225)


def draw_images(count: int, side: int, seed: int) -> NDArray[np.uint8]:
    """Return uint8 images [count, 3, side, side]."""
    random = np.random.default_rng(seed)
    kinds = (_squares, _smooth, _gratings, _noise)
    return np.stack([kinds[index % len(kinds)](side, random) for index in range(count)])


def normalised(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return ``(pixel / 255 - mean) / std`` of uint8 images [N, 3, H, W]."""
    mean, std = (np.array(numbers).reshape(1, 3, 1, 1) for numbers in (MEAN, STD))
    scaled: NDArray[np.float64] = (images / 255 - mean) / std
    return scaled


def _squares(side: int, random: Generator) -> NDArray[np.uint8]:
    image = np.empty((3, side, side), np.uint8)
    image[:] = random.integers(0, 256, (3, 1, 1))
    for _ in range(12):
        top, left = random.integers(0, side, 2)
        height, width = random.integers(side // 8, side // 2, 2)
        image[:, top : top + height, left : left + width] = random.integers(0, 256, (3, 1, 1))
    return image


def _smooth(side: int, random: Generator) -> NDArray[np.uint8]:
    """Coarse random colours with straight lines drawn between them."""
    coarse = random.uniform(0, 255, (3, 6, 6))
    at = np.linspace(0, 5, side)
    for axis in (1, 2):
        coarse = np.apply_along_axis(lambda values: np.interp(at, np.arange(6), values), axis, coarse)
    return coarse.round().astype(np.uint8)


def _gratings(side: int, random: Generator) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[0:side, 0:side] * (2 * np.pi / side)
    waves = [
        np.sin(random.uniform(-8, 8) * rows + random.uniform(-8, 8) * columns + random.uniform(0, 6))
        for _ in range(3)
    ]
    return (np.stack(waves) * random.uniform(30, 127) + 127.5).round().astype(np.uint8)


def _noise(side: int, random: Generator) -> NDArray[np.uint8]:
    return random.integers(0, 256, (3, side, side), dtype=np.uint8)
