"""A folder of images as a data set: which files it holds, what their classes are, and how it is split.

FOLDER/CLASS/*               the test images are a seeded fifth of each class
FOLDER/{train,val}/CLASS/*   val (or test) is the final judge, read once; validation images come from train

Classes are the names of the folders, sorted. Names that begin with a dot are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from imaging import ImageSpec
from training.datasets.dataset import SPLIT_SEED, Dataset
from training.datasets.decoding import Decoded, decode_all, inspect_images
from training.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from training.terminal import Terminal

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})
_TEST_NAMES = ("val", "valid", "validation", "test")
_TEST_SHARE = 0.2
_USUAL_SIDE = 224
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class ImageFiles:
    """The image files of a split, in order, with the class index of each."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]


def load_image_folder(
    folder: Path,
    *,
    image: ImageSpec | None,
    image_size: int | None,
    skip_unreadable: bool,
    terminal: Terminal,
) -> Dataset:
    """Return the images of ``folder``, decoded in parallel or taken from the cache.

    ``image`` is how they are prepared, where that is known already (from a checkpoint); else their colours
    decide between grey and RGB, and ``image_size``, or their common size, or else 224 is the size.

    Raises:
        DatasetError: there are no classes or only one, a class without images, or unreadable files.
    """
    folder = folder.resolve()
    train_folder, test_folder = _find_splits(folder)
    labels = _find_labels(train_folder)
    train = _find_images(train_folder, labels)
    test = None
    if test_folder is not None:
        _check_same_labels(test_folder, labels)
        test = _find_images(test_folder, labels)
    every = train.paths + (test.paths if test else ())
    spec = image or _choose_spec(every, image_size, terminal)
    decoded = decode_all(folder, every, spec, terminal)
    _report_unreadable(folder, decoded, len(every), skip_unreadable=skip_unreadable, terminal=terminal)
    classes = torch.tensor(train.labels + (test.labels if test else ()))
    readable = torch.from_numpy(decoded.readable)
    is_test = torch.arange(len(every)) >= len(train.paths) if test else _seeded_test_share(classes, readable)
    _check_classes_are_there(classes[readable & ~is_test], labels, train_folder)
    images, classes, is_test = torch.from_numpy(decoded.images), classes[readable], is_test[readable]
    return Dataset(
        name=str(folder),
        labels=labels,
        image=spec,
        train_images=_rows(images, ~is_test),
        train_labels=classes[~is_test],
        test_images=_rows(images, is_test),
        test_labels=classes[is_test],
    )


def _rows(images: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return the chosen rows: as a view, so without reading them, where they stand together."""
    places = torch.nonzero(chosen).flatten()
    first, last = int(places[0]), int(places[-1])
    return images[first : last + 1] if last - first + 1 == len(places) else images[places]


def _find_splits(folder: Path) -> tuple[Path, Path | None]:
    """Return the folders of the training and the test images; None where one folder holds all."""
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist")
    train = folder / "train"
    tests = [folder / name for name in _TEST_NAMES if (folder / name).is_dir()]
    if not train.is_dir() or not _folders(train):
        return folder, None
    if len(tests) > 1:
        raise DatasetError(
            f"{folder} has {' and '.join(path.name for path in tests)} beside train; expected one of them"
        )
    if not tests:
        raise DatasetError(
            f"{folder} has train but no val beside it; expected train and val, or the classes alone"
        )
    return train, tests[0]


def _find_labels(folder: Path) -> tuple[str, ...]:
    labels = tuple(path.name for path in _folders(folder))
    if len(labels) < 2:
        there = f"only one class, {labels[0]!r}" if labels else "no folders of classes"
        raise DatasetError(
            f"{folder} has {there}; expected a folder of images for each of two classes or more"
        )
    return labels


def _check_same_labels(folder: Path, labels: tuple[str, ...]) -> None:
    there = {path.name for path in _folders(folder)}
    missing, more = sorted(set(labels) - there), sorted(there - set(labels))
    if missing or more:
        raise DatasetError(
            f"{folder} does not have the classes of {folder.with_name('train')}: "
            + "; ".join(
                f"{word} {_named(names)}"
                for word, names in (("missing", missing), ("unknown", more))
                if names
            )
        )


def _find_images(folder: Path, labels: tuple[str, ...]) -> ImageFiles:
    """List the image files of each class, also in folders below it, in the order of their names."""
    paths: list[Path] = []
    classes: list[int] = []
    empty = []
    for index, label in enumerate(labels):
        found = sorted(
            path
            for path in (folder / label).rglob("*")
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
        )
        if not found:
            empty.append(label)
        paths += found
        classes += [index] * len(found)
    if empty:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DatasetError(
            f"{folder} has classes without images: {_named(empty)}; put images ({suffixes}) there or remove "
            "the folders"
        )
    return ImageFiles(tuple(paths), tuple(classes))


def _choose_spec(paths: Sequence[Path], image_size: int | None, terminal: Terminal) -> ImageSpec:
    kinds = inspect_images(paths)
    if not kinds:
        return ImageSpec(
            "RGB", *(image_size or _USUAL_SIDE,) * 3
        )  # nothing can be read: told by what follows
    sizes = {(kind.height, kind.width) for kind in kinds}
    side = image_size or _USUAL_SIDE
    height, width = sizes.pop() if image_size is None and len(sizes) == 1 else (side, side)
    grey = all(kind.is_grey for kind in kinds)
    terminal.say(f"images are taken as {'grey' if grey else 'RGB'}, {height}x{width} pixels")
    return ImageSpec("L" if grey else "RGB", height, width, resize_shorter_side=max(height, width))


def _report_unreadable(
    folder: Path, decoded: Decoded, total: int, *, skip_unreadable: bool, terminal: Terminal
) -> None:
    if not decoded.unreadable:
        return
    listed = "; ".join(f"{name}: {reason}" for name, reason in decoded.unreadable[:_NAMES_SHOWN])
    rest = len(decoded.unreadable) - _NAMES_SHOWN
    listed += f"; and {rest:,} more" if rest > 0 else ""
    line = f"{len(decoded.unreadable):,} of {total:,} images in {folder} cannot be read ({listed})"
    if not skip_unreadable:
        raise DatasetError(f"{line}; mend or remove them, or leave them out with --skip-unreadable")
    terminal.say(f"{line}; left out")


def _seeded_test_share(classes: torch.Tensor, readable: torch.Tensor) -> torch.Tensor:
    """Return bool [N]: a fifth of each class's readable images, at least one and never all."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    is_test = torch.zeros(len(classes), dtype=torch.bool)
    for label in range(int(classes.max()) + 1):
        places = torch.nonzero((classes == label) & readable).flatten()
        count = min(max(1, round(_TEST_SHARE * len(places))), len(places) - 1)
        order = torch.randperm(len(places), generator=generator)
        is_test[places[order[: max(0, count)]]] = True
    return is_test


def _check_classes_are_there(classes: torch.Tensor, labels: tuple[str, ...], folder: Path) -> None:
    counts = np.bincount(classes.numpy(), minlength=len(labels))
    if missing := [label for label, count in zip(labels, counts, strict=True) if count == 0]:
        raise DatasetError(f"{folder} has no readable training images of {_named(missing)}")


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _named(names: Sequence[str]) -> str:
    rest = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
