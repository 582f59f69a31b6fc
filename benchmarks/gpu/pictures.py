"""Writes pictures of four classes that a network learns in an epoch or two, where no data set is at hand."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path


def write_pictures(folder: Path, per_class: int, side: int = 28) -> Path:
    """Write FOLDER/CLASS/NUMBER.png, grey: seeded noise with one bright quarter, whose place is the class."""
    shutil.rmtree(folder, ignore_errors=True)
    generator = np.random.default_rng(0)
    half = side // 2
    for index, label in enumerate(("east", "north", "south", "west")):
        (folder / label).mkdir(parents=True)
        for number in range(per_class):
            pixels = generator.integers(0, 100, (side, side), dtype=np.uint8)
            top, left = half * (index // 2), half * (index % 2)
            pixels[top : top + half, left : left + half] += 120
            Image.fromarray(pixels).save(folder / label / f"{number:04}.png")
    return folder
