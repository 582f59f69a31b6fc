"""Loads images to verify an export with: from a folder, or seeded synthetic ones.

FOLDER/*            images without labels
FOLDER/LABEL/*      images of known classes, if the folders are named as the network's labels

`foldserve.imaging.prepare_image` prepares them, as the server prepares the images of a request.
"""

from __future__ import annotations

import difflib
import os
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from foldserve.errors import ImageError
from foldserve.export.errors import SourceError
from foldserve.export.sources.source import VerificationImages
from foldserve.imaging import prepare_image
from foldserve.text import escaped, join_first
from foldserve.training.datasets.picture_files import (
    IMAGE_SUFFIXES,
    LeftOut,
    find_pictures,
    is_picture,
    visible_folders,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from foldserve.imaging import ImageSpec

ALL_IMAGES_SIDE = 64  # pixels; up to here all test images are compared
LARGE_IMAGE_COUNT = 1000

# As many as golden pairs of small and of large images (`golden_pairs`): more noise would verify nothing new.
SYNTHETIC_COUNT = 256
SYNTHETIC_COUNT_LARGE = 64
_SEED = 1998  # of the synthetic images; any fixed number
# Grey levels of noise in each synthetic image, an eighth of them all.
_GRAIN = 32

# The largest batch size that is compared; with fewer images it is not filled.
FEW = 32
_NAMES_SHOWN = 3


def image_count(available: int, image: ImageSpec, asked: int | None) -> int:
    """Return how many of ``available`` images to compare: ``asked``, or by default as their size allows."""
    if asked is not None:
        return min(available, asked)
    is_large = max(image.height, image.width) > ALL_IMAGES_SIDE
    return min(available, LARGE_IMAGE_COUNT) if is_large else available


def spread(available: int, count: int) -> NDArray[np.int64]:
    """Return ``count`` positions spread evenly over ``available``."""
    return np.linspace(0, available - 1, count).round().astype(np.int64)


def load_verification_images(
    folder: Path | None, image: ImageSpec, labels: Sequence[str], asked: int | None
) -> tuple[VerificationImages, tuple[str, ...]]:
    """Return the images of ``folder``, or synthetic ones if it is None, and remarks for the user.

    Raises:
        SourceError: the folder holds no images or unreadable ones, or only some subfolders are labels.
    """
    if folder is None:
        return synthetic_images(image, asked), (
            "no --images: verified on seeded synthetic images; accuracy is not measured",
        )
    paths, classes, remarks = _find_images(folder, labels)
    chosen = spread(len(paths), image_count(len(paths), image, asked))
    images = _decode([paths[index] for index in chosen], folder, image)
    verification = VerificationImages(
        images=images,
        labels=None if classes is None else np.array(classes, dtype=np.int64)[chosen],
        synthetic=False,
        origin=f"images of {folder.resolve().name}",
    )
    if len(images) < FEW:
        remarks = (
            *remarks,
            f"warning: only {len(images)} images in {folder}; give {FEW} or more for reliable golden pairs",
        )
    return verification, remarks


def synthetic_images(image: ImageSpec, asked: int | None) -> VerificationImages:
    """Return seeded images of random squares of all sizes, from one colour to single pixels, with a grain.

    On noise alone a deep network gives nearly equal outputs for all images, and most weights go untested.
    The grain is for layers that divide by an image's own standard deviation: that of a flat colour is next
    to nothing, so that they magnify rounding tens of times, and differently in every runtime.
    """
    is_large = max(image.height, image.width) > ALL_IMAGES_SIDE
    count = asked or (SYNTHETIC_COUNT_LARGE if is_large else SYNTHETIC_COUNT)
    random = np.random.default_rng(_SEED)
    longest = max(image.height, image.width)
    cell_counts = [2**power for power in range(longest.bit_length())] + [longest]
    images = np.empty((count, *image.shape), dtype=np.uint8)
    for index in range(count):
        cells = cell_counts[index % len(cell_counts)]
        colours = random.integers(0, 257 - _GRAIN, (image.channels, cells, cells), dtype=np.uint8)
        rows, columns = (np.arange(side) * cells // longest for side in (image.height, image.width))
        grain = random.integers(0, _GRAIN, image.shape, dtype=np.uint8)
        images[index] = colours[:, rows[:, np.newaxis], columns] + grain
    return VerificationImages(images, labels=None, synthetic=True, origin="seeded synthetic images")


def _find_images(folder: Path, labels: Sequence[str]) -> tuple[list[Path], list[int] | None, tuple[str, ...]]:
    """Return the image files sorted by name, their classes if the folders are labels, and remarks."""
    if not folder.is_dir():
        raise SourceError(
            f"--images {folder} {'is not a folder' if folder.exists() else 'does not exist'}; expected a "
            "folder of images, or one with a subfolder of images per label"
        )
    left_out = LeftOut(folder)
    flat = sorted(path for path in folder.iterdir() if is_picture(path))
    # Names that look the same are one label, as in training.
    found: dict[str, list[Path]] = {}
    for path in visible_folders(folder):
        if paths := find_pictures(path, left_out):
            found.setdefault(unicodedata.normalize("NFC", path.name), []).extend(paths)
    if flat:
        below = sum(map(len, found.values()))
        return (
            flat,
            None,
            (f"left out: {below:,} images in subfolders, beside {len(flat):,}",) if below else (),
        )
    if not found:
        raise SourceError(f"--images {folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    remarks = tuple(f"left out: {line}" for line in left_out.lines())
    paths = [path for name in found for path in found[name]]
    place = {unicodedata.normalize("NFC", label): index for index, label in enumerate(labels)}
    unknown = [name for name in found if name not in place]
    if len(unknown) == len(found):
        remark = f"the folders in {folder} are not named as the labels: accuracy is not measured"
        return paths, None, (remark, *remarks)
    if unknown:
        raise SourceError(
            f"--images {folder}: {len(unknown)} of {len(found)} folders are not named as a label: "
            f"{_with_near_misses(unknown, labels)}; rename or remove them"
        )
    classes = [place[name] for name in found for _ in found[name]]
    missing = [labels[index] for name, index in place.items() if name not in found]
    if missing:
        remarks = (f"no images of {join_first(missing)} in {folder}", *remarks)
    return paths, classes, remarks


def _decode(paths: Sequence[Path], folder: Path, image: ImageSpec) -> NDArray[np.uint8]:
    images = np.empty((len(paths), *image.shape), dtype=np.uint8)

    def decode_one(index: int) -> str | None:
        try:
            images[index] = prepare_image(paths[index].read_bytes(), image)
        except (ImageError, OSError) as error:
            name = escaped(str(paths[index].relative_to(folder)))
            return f"{name}: {getattr(error, 'strerror', None) or error}"
        return None

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # Pillow releases the GIL while it decodes
        reasons = [reason for reason in pool.map(decode_one, range(len(paths))) if reason is not None]
    if reasons:
        raise SourceError(
            f"{len(reasons)} of {len(paths)} images in {folder} cannot be read "
            f"({join_first(reasons, '; ')}); repair or remove them"
        )
    return images


def _with_near_misses(names: Sequence[str], labels: Sequence[str]) -> str:
    shown = []
    for name in names[:_NAMES_SHOWN]:
        near = difflib.get_close_matches(name, labels, n=1)
        shown.append(escaped(name) + (f" (did you mean {near[0]}?)" if near else ""))
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")
