"""Writes sample images to try a served model with: the first test image of each class, as PNG files."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.training.datasets import Dataset

SAMPLES_FOLDER = "samples"
_MOST_CLASSES = 100  # more images than anybody looks at


def write_samples(folder: Path, dataset: Dataset) -> list[Path]:
    """Write the first test image of each class as ``folder/LABEL.png`` and return the paths.

    Only the first hundred classes are written, and no class without test images.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    labels = dataset.test_labels.tolist()
    paths: list[Path] = []
    for index, label in enumerate(dataset.labels[:_MOST_CLASSES]):
        if index not in labels:
            continue
        name = re.sub(r"[^\w.]+", "-", label).lstrip(".")
        path = folder / f"{name}.png"
        if path in paths or not name:  # "a b" and "a/b" must not become one file
            path = folder / f"{name}-{index}.png"
        image = dataset.test_images[labels.index(index)]  # [C, H, W]
        Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(path)
        paths.append(path)
    return paths
