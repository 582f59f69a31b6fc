"""Makes the pictures of the journey from Fashion-MNIST: grey JPEGs of many sizes and shapes.

The 500 pictures show five garments, the rarest a twelfth as often as the commonest, and are training images.
The judge's pictures show the same five equally often, and are test images. The pictures that the weights to
start from are trained on show the other five classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from foldserve.training.datasets import load_dataset

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from foldserve.training.datasets import Dataset

COUNTS = {"Shirt": 204, "Pullover": 136, "Coat": 88, "Dress": 55, "T-shirt/top": 17}
JUDGED_PER_CLASS = 200
_OTHERS_PER_CLASS = 500
# Sides in pixels: the garment keeps its shape, and stands on a background of its own shape.
_SIDES = (30, 46)


def write_pictures(folder: Path) -> dict[str, Path]:
    """Return the folders "pictures", "judged" and "others" below ``folder``; write them unless they exist."""
    folders = {name: folder / name for name in ("pictures", "judged", "others")}
    if all(path.is_dir() for path in folders.values()):
        return folders
    dataset = load_dataset("fashion-mnist")
    others = dict.fromkeys(sorted(set(dataset.labels) - set(COUNTS)), _OTHERS_PER_CLASS)
    judged = dict.fromkeys(COUNTS, JUDGED_PER_CLASS)
    for name, counts, is_test in (
        ("pictures", COUNTS, False),
        ("others", others, False),
        ("judged", judged, True),
    ):
        _write(folders[name], dataset, counts, is_test=is_test)
    return folders


def _write(folder: Path, dataset: Dataset, counts: Mapping[str, int], *, is_test: bool) -> None:
    """Write the first images of each class, as JPEG on a canvas of a random size."""
    images, labels = dataset.train_images, dataset.train_labels
    if is_test:
        images, labels = dataset.test_images, dataset.test_labels
    rng = np.random.default_rng(0)
    partial = folder.with_name(f".{folder.name}.part")
    for label, count in counts.items():
        place = partial / label.replace("/", "-")
        place.mkdir(parents=True, exist_ok=True)
        chosen = images[labels == dataset.labels.index(label)][:count, 0].numpy()
        for number, pixels in enumerate(chosen):
            height, width = (int(side) for side in rng.integers(*_SIDES, 2))
            side = min(height, width)
            canvas = Image.new("L", (width, height), 0)
            garment = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
            canvas.paste(garment, ((width - side) // 2, (height - side) // 2))
            canvas.save(place / f"{number:04}.jpg", quality=int(rng.integers(75, 96)))
    partial.rename(folder)
