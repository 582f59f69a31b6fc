"""Folders of small pictures: one bright quarter on noise, whose place is the class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LABELS = ("east", "north", "south", "west")


def write_classes(
    folder: Path,
    per_class: int,
    *,
    labels: Sequence[str] = LABELS,
    size: tuple[int, int] = (28, 28),
    mode: str = "L",
    seed: int = 0,
) -> Path:
    """Write ``per_class`` PNG files of (width, height) ``size`` into FOLDER/CLASS for each class."""
    generator = np.random.default_rng(seed)
    width, height = size
    for index, label in enumerate(labels):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            pixels = generator.integers(0, 100, (height, width, 3), dtype=np.uint8)
            top, left = height // 2 * (index // 2 % 2), width // 2 * (index % 2)
            pixels[top : top + height // 2, left : left + width // 2] += 120
            Image.fromarray(pixels).convert(mode).save(folder / label / f"{number:03}.png")
    return folder
