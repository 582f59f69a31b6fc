"""Lists the data sets, the cheapest to train on first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.small_data.drawn import glyphs, scenes, textures
from benchmarks.small_data.found import digits, icons, subset
from benchmarks.small_data.image_folder import write_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from PIL.Image import Image


@dataclass(frozen=True)
class DataSet:
    """A data set to make: its images for a number of training images, and that number."""

    images: Callable[[int], Iterator[tuple[str, str, str, Image]]]
    train_count: int
    described: str

    def folder(self, name: str, place: Path) -> Path:
        """Return the folder of the data set below ``place``; write it unless it is there.

        Raises:
            DataUnavailableError: what it is made from is not there.
        """
        folder = place / name
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            write_folder(folder, self.images(self.train_count))
        return folder


DATA_SETS = {
    "fashion-200": DataSet(partial(subset, "fashion-mnist"), 200, "Fashion-MNIST's first, grey, 28 px"),
    "digits": DataSet(digits, 1200, "scikit-learn's digits, grey, 8 px"),
    "fashion-1000": DataSet(partial(subset, "fashion-mnist"), 1000, "Fashion-MNIST's first, grey, 28 px"),
    "scenes": DataSet(scenes, 2000, "shapes before uneven backgrounds, RGB, 32 px"),
    "fashion-5000": DataSet(partial(subset, "fashion-mnist"), 5000, "Fashion-MNIST's first, grey, 28 px"),
    "cifar10-2000": DataSet(partial(subset, "cifar10"), 2000, "CIFAR-10's first, RGB, 32 px"),
    "glyphs": DataSet(glyphs, 600, "drawn letters and digits, grey, 48 px"),
    "textures": DataSet(textures, 500, "five textures, the rarest a twelfth, RGB, 60 to 110 px"),
    "icons": DataSet(icons, 1200, "Debian's oxygen icons by folder, RGB, 128 px"),
}
