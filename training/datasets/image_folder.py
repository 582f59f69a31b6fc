"""A folder of images as a data set: what it holds is told, decoded, and split where it is not.

The final judge, read once, is the folder's test images, or else its val images, or else a seeded fifth of
each class. Validation images, to choose the epoch by, are its val images where it has test images too; else
they come from the training images.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np
import torch

from foldserve.imaging import ImageSpec
from foldserve.terminal import Terminal
from foldserve.text import escaped, join_first
from foldserve.training.datasets.dataset import SPLIT_SEED, Dataset, Examples
from foldserve.training.datasets.decoding import Decoded, decode_all, inspect_images, read_digests
from foldserve.training.datasets.folder_layout import FolderLayout, Role, find_layout
from foldserve.training.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from foldserve.training.datasets.decoding import PictureFile

_TEST_SHARE = 0.2
_USUAL_SIDE = 224
_TRAINING, _VALIDATION, _TEST = range(3)
_CLASSES_SHOWN = 10


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
        DatasetError: there are no classes or only one, a class without images, unreadable files, or it
            cannot be told what is meant.
    """
    folder = folder.resolve()
    _check_name(folder)
    layout = find_layout(folder)
    _tell(folder, layout, terminal)
    paths = [path for split in layout.splits.values() for path in split.paths]
    files = read_digests(folder, paths, terminal)
    spec = image or _choose_spec(paths, image_size, terminal)
    decoded = decode_all(files, spec, terminal)
    _report_unreadable(folder, decoded, len(paths), skip_unreadable=skip_unreadable, terminal=terminal)
    classes = torch.tensor([label for split in layout.splits.values() for label in split.labels])
    readable = torch.from_numpy(decoded.readable)
    places = _places(layout, classes, readable)
    _check_each_has_its_images(classes[readable], places[readable], layout, folder)
    images, classes, places = torch.from_numpy(decoded.images), classes[readable], places[readable]
    return Dataset(
        name=str(folder),
        labels=layout.labels,
        image=spec,
        train_images=_rows(images, places == _TRAINING),
        train_labels=classes[places == _TRAINING],
        validation=_examples(images, classes, places == _VALIDATION),
        test_images=_rows(images, places == _TEST),
        test_labels=classes[places == _TEST],
        fingerprint=_fingerprint(files, layout),
    )


def fingerprint_of(folder: Path) -> str:
    """Return the fingerprint that `load_image_folder` gives the data set in ``folder``, without decoding.

    Raises:
        DatasetError: as there, but for what only decoding shows.
    """
    folder = folder.resolve()
    layout = find_layout(folder)
    paths = [path for split in layout.splits.values() for path in split.paths]
    return _fingerprint(read_digests(folder, paths, Terminal.silent()), layout)


def _check_name(folder: Path) -> None:
    if escaped(str(folder)) != str(folder):
        raise DatasetError(
            f"the path {escaped(str(folder))} is not UTF-8, or holds control characters, and stands in "
            "checkpoints and reports; rename the folder"
        )


def _tell(folder: Path, layout: FolderLayout, terminal: Terminal) -> None:
    """Say what was found, before the first image is decoded."""
    listed = ", ".join(layout.labels[:_CLASSES_SHOWN])
    listed += (
        f" and {len(layout.labels) - _CLASSES_SHOWN:,} more" if len(layout.labels) > _CLASSES_SHOWN else ""
    )
    if set(layout.splits) == {"training"}:
        split = layout.splits["training"]
        within = f" in {split.folder.relative_to(folder)}" if split.folder != folder else ""
        found = f"{len(split.paths):,} images{within}, a fifth of each class held out for the test"
    else:
        found = ", ".join(
            f"{len(split.paths):,} images for {role} in {split.folder.relative_to(folder)}"
            for role, split in layout.splits.items()
        )
        if "test" not in layout.splits:
            found += "; those for validation are the test, and others are held out to choose the epoch by"
    terminal.say(f"{folder}: {len(layout.labels):,} classes ({listed}); {found}")
    for line in layout.left_out:
        terminal.say(f"left out: {line}")


def _places(layout: FolderLayout, classes: torch.Tensor, readable: torch.Tensor) -> torch.Tensor:
    """Return int [N], what each image is for: as the folder splits them, or test images drawn."""
    if set(layout.splits) == {"training"}:
        return _seeded_test_share(classes, readable).int() * _TEST
    use: dict[Role, int] = {"training": _TRAINING, "validation": _VALIDATION, "test": _TEST}
    if "test" not in layout.splits:
        use["validation"] = _TEST
    return torch.cat(
        [torch.full((len(split.paths),), use[role], dtype=torch.int) for role, split in layout.splits.items()]
    )


def _rows(images: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return the chosen rows: as a view, so without reading them, where they stand together."""
    places = torch.nonzero(chosen).flatten()
    first_row, last_row = int(places[0]), int(places[-1])
    is_together = last_row - first_row + 1 == len(places)
    return images[first_row : last_row + 1] if is_together else images[places]


def _examples(images: torch.Tensor, classes: torch.Tensor, chosen: torch.Tensor) -> Examples | None:
    return Examples(_rows(images, chosen), classes[chosen]) if bool(chosen.any()) else None


def _fingerprint(files: Sequence[PictureFile], layout: FolderLayout) -> str:
    """Return a hash of the images with their names, so with their classes and splits."""
    digest = hashlib.sha256(json.dumps(layout.labels).encode())
    for file in files:
        digest.update(json.dumps([file.name, file.digest.hex()]).encode())
    return digest.hexdigest()


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
    listed = join_first([f"{escaped(name)}: {reason}" for name, reason in decoded.unreadable], "; ")
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


def _check_each_has_its_images(
    classes: torch.Tensor, places: torch.Tensor, layout: FolderLayout, folder: Path
) -> None:
    """Check that there is something to learn each class from, and something to judge by.

    Raises:
        DatasetError: there is not.
    """
    counts = np.bincount(classes[places == _TRAINING].numpy(), minlength=len(layout.labels))
    if missing := [label for label, count in zip(layout.labels, counts, strict=True) if count == 0]:
        raise DatasetError(
            f"{layout.splits['training'].folder} has no readable training images of {join_first(missing)}"
        )
    if not bool((places == _TEST).any()):
        raise DatasetError(
            f"{folder} has a single image a class, which leaves none to judge by; expected at least 2 a "
            "class, and 10 for training in all: add images"
            if set(layout.splits) == {"training"}
            else f"{folder} has no readable images to judge by; mend them, or remove their folder"
        )
