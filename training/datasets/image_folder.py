"""Loads a folder of images as a data set: reports its content, decodes it, and splits it if it has no splits.

The test images, read once at the end, are those of the folder's test split, else of its val split, else a
seeded fifth of each class. The validation images, which choose the epoch, are those of its val split if it
has a test split too; else they come from the training images.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from foldserve.imaging import ImageSpec
from foldserve.terminal import Terminal
from foldserve.text import escaped, join_first
from foldserve.training.datasets.dataset import SPLIT_SEED, Dataset, Examples
from foldserve.training.datasets.decoding import Decoded, decode_all, inspect_images, read_digests
from foldserve.training.datasets.folder_layout import FolderLayout, Role, find_layout
from foldserve.training.datasets.splitting import grouped
from foldserve.training.errors import DatasetError
from foldserve.training.folder_recipe import choose_arch, choose_side, median_side

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from foldserve.imaging import DecodeRule
    from foldserve.training.datasets.decoding import ImageKind, PictureFile

_TEST_SHARE = 0.2
_BY_FOLDER = "folder"
_TRAINING, _VALIDATION, _TEST = range(3)
_CLASSES_SHOWN = 10


def load_image_folder(
    folder: Path,
    *,
    image: ImageSpec | None,
    image_size: int | None,
    decode: DecodeRule,
    skip_unreadable: bool,
    terminal: Terminal,
    arch: str | None = None,
    group_by: str | None = None,
) -> Dataset:
    """Return the images of ``folder``, decoded in parallel or read from the cache.

    ``image`` says how to prepare them if that is known, as from a checkpoint. Otherwise they are grey if all
    files are, else RGB, their size is ``image_size``, else the one that `foldserve.training.folder_recipe`
    chooses for the network ``arch``, or for the one that it would choose, and they are decoded as ``decode``
    says.

    ``group_by`` is "folder" or a regular expression that finds the group of an image in its path; images of
    one group are not parted by a split that is made here.

    Raises:
        DatasetError: there are fewer than two classes, a class without images, or unreadable files, or the
            layout is ambiguous.
    """
    folder = folder.resolve()
    _check_name(folder)
    layout = find_layout(folder)
    _report_layout(folder, layout, terminal)
    paths = [path for split in layout.splits.values() for path in split.paths]
    files = read_digests(folder, paths, terminal)
    spec = image or _choose_spec(
        paths,
        image_size=image_size,
        arch=arch,
        train_count=len(layout.splits["training"].paths),
        decode=decode,
        terminal=terminal,
    )
    decoded = decode_all(files, spec, terminal)
    _report_unreadable(folder, decoded, len(paths), skip_unreadable=skip_unreadable, terminal=terminal)
    classes = torch.tensor([label for split in layout.splits.values() for label in split.labels])
    readable = torch.from_numpy(decoded.readable)
    groups = None if group_by is None else _groups([file.name for file in files], group_by)
    places = _places(layout, classes, readable, groups)
    if groups is not None:
        _report_parted_groups(groups[readable], places[readable], terminal)
    _check_each_has_its_images(classes[readable], places[readable], layout, folder)
    images, classes, places = torch.from_numpy(decoded.images), classes[readable], places[readable]
    train_groups = None
    if groups is not None:
        train_groups = groups[readable][places == _TRAINING]
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
        is_folder=True,
        train_groups=train_groups,
    )


def fingerprint_of(folder: Path) -> str:
    """Return the fingerprint that `load_image_folder` gives the data set in ``folder``, without decoding.

    Raises:
        DatasetError: as `load_image_folder`, except for errors that only decoding finds.
    """
    folder = folder.resolve()
    layout = find_layout(folder)
    paths = [path for split in layout.splits.values() for path in split.paths]
    return _fingerprint(read_digests(folder, paths, Terminal.silent()), layout)


def _check_name(folder: Path) -> None:
    if escaped(str(folder)) != str(folder):
        raise DatasetError(
            f"the path {escaped(str(folder))} is not UTF-8, or has control characters, but is written into "
            "checkpoints and reports; rename the folder"
        )


def _report_layout(folder: Path, layout: FolderLayout, terminal: Terminal) -> None:
    """Report the classes and splits found, before images are decoded."""
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
            found += "; those for validation become the test images, and others are held out for validation"
    terminal.say(f"{folder}: {len(layout.labels):,} classes ({listed}); {found}")
    for line in layout.left_out:
        terminal.say(f"left out: {line}")


def _groups(names: Sequence[str], group_by: str) -> torch.Tensor:
    """Return int64 [N]: the group of each image of these ``names``.

    Raises:
        DatasetError: ``group_by`` is no regular expression, or finds no group in a name.
    """
    if group_by == _BY_FOLDER:
        keys = [name.rpartition("/")[0] for name in names]
    else:
        try:
            pattern = re.compile(group_by)
        except re.error as error:
            raise DatasetError(
                f"--group-by {group_by} is not a regular expression: {error}; expected one, or folder"
            ) from error
        found = [pattern.search(name) for name in names]
        if without := [escaped(name) for name, match in zip(names, found, strict=True) if match is None]:
            raise DatasetError(
                f"--group-by {group_by} finds no group in {len(without):,} of {len(names):,} paths: "
                f"{join_first(without)}"
            )
        keys = [match[1] if pattern.groups else match[0] for match in found if match is not None]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([numbers[key] for key in keys])


def _report_parted_groups(groups: torch.Tensor, places: torch.Tensor, terminal: Terminal) -> None:
    """Report groups that the folder's own splits part; splits that are made here part none."""
    training = set(groups[places == _TRAINING].tolist())
    if count := len(training & set(groups[places != _TRAINING].tolist())):
        terminal.say(
            f"warning: {count:,} groups of --group-by have images in training and in another split of the "
            "folder: the accuracy may be too high"
        )


def _places(
    layout: FolderLayout, classes: torch.Tensor, readable: torch.Tensor, groups: torch.Tensor | None
) -> torch.Tensor:
    """Return int [N]: the split of each image, from its folder or, if there are no splits, drawn.

    Raises:
        DatasetError: no group can be held out.
    """
    if set(layout.splits) == {"training"} and groups is not None:
        is_test = torch.zeros(len(classes), dtype=torch.bool)
        is_test[readable] = grouped(classes[readable], groups[readable], _TEST_SHARE, SPLIT_SEED)
        if not bool(is_test.any()):
            raise DatasetError(
                f"--group-by makes {int(groups.max()) + 1:,} groups of {len(groups):,} images, none of which "
                "can be held out for the test so that each class keeps images; expected smaller groups"
            )
        return is_test.int() * _TEST
    if set(layout.splits) == {"training"}:
        return _seeded_test_share(classes, readable).int() * _TEST
    use: dict[Role, int] = {"training": _TRAINING, "validation": _VALIDATION, "test": _TEST}
    if "test" not in layout.splits:
        use["validation"] = _TEST
    return torch.cat(
        [torch.full((len(split.paths),), use[role], dtype=torch.int) for role, split in layout.splits.items()]
    )


def _rows(images: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return the chosen rows; if they are contiguous, as a view, so without reading them."""
    places = torch.nonzero(chosen).flatten()
    first_row, last_row = int(places[0]), int(places[-1])
    is_together = last_row - first_row + 1 == len(places)
    return images[first_row : last_row + 1] if is_together else images[places]


def _examples(images: torch.Tensor, classes: torch.Tensor, chosen: torch.Tensor) -> Examples | None:
    return Examples(_rows(images, chosen), classes[chosen]) if bool(chosen.any()) else None


def _fingerprint(files: Sequence[PictureFile], layout: FolderLayout) -> str:
    """Return a hash of the images and their names, which include their classes and splits."""
    digest = hashlib.sha256(json.dumps(layout.labels).encode())
    for file in files:
        digest.update(json.dumps([file.name, file.digest.hex()]).encode())
    return digest.hexdigest()


def _choose_spec(
    paths: Sequence[Path],
    *,
    image_size: int | None,
    arch: str | None,
    train_count: int,
    decode: DecodeRule,
    terminal: Terminal,
) -> ImageSpec:
    kinds = inspect_images(paths)
    if not kinds:  # no file can be read, which decoding reports
        return ImageSpec("RGB", *(image_size or 1,) * 3, decode)
    sizes = [(kind.height, kind.width) for kind in kinds]
    grey = all(kind.is_grey for kind in kinds)
    if image_size is None:
        chosen = arch or choose_arch(train_count, median_side(sizes), is_grey=grey)
        image_size = choose_side(chosen, sizes)
    height, width = sizes[0] if image_size is None else (image_size, image_size)
    terminal.say(
        f"images are used as {'grey' if grey else 'RGB'}, {height}x{width} pixels; the files are "
        f"{_kinds_text(kinds)}"
    )
    return ImageSpec("L" if grey else "RGB", height, width, max(height, width), decode)


def _kinds_text(kinds: Sequence[ImageKind]) -> str:
    """Return the formats and sizes of files."""
    formats = Counter(kind.format for kind in kinds).most_common()
    listed = ", ".join(f"{count:,} {name}" for name, count in formats)
    smallest = min(kinds, key=lambda kind: kind.height * kind.width)
    largest = max(kinds, key=lambda kind: kind.height * kind.width)
    first, last = (f"{kind.height}x{kind.width}" for kind in (smallest, largest))
    return f"{listed}, {first}" + (f" to {last}" if first != last else "") + " pixels"


def _report_unreadable(
    folder: Path, decoded: Decoded, total: int, *, skip_unreadable: bool, terminal: Terminal
) -> None:
    if not decoded.unreadable:
        return
    listed = join_first([f"{escaped(name)}: {reason}" for name, reason in decoded.unreadable], "; ")
    line = f"{len(decoded.unreadable):,} of {total:,} images in {folder} cannot be read ({listed})"
    if not skip_unreadable:
        raise DatasetError(f"{line}; repair or remove them, or skip them with --skip-unreadable")
    terminal.say(f"{line}; left out")


def _seeded_test_share(classes: torch.Tensor, readable: torch.Tensor) -> torch.Tensor:
    """Return bool [N] with a fifth of each class's readable images, at least one and never all."""
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
    """Check that each class has training images, and that there are test images.

    Raises:
        DatasetError: a class has none, or there are no test images.
    """
    counts = np.bincount(classes[places == _TRAINING].numpy(), minlength=len(layout.labels))
    if missing := [label for label, count in zip(layout.labels, counts, strict=True) if count == 0]:
        raise DatasetError(
            f"{layout.splits['training'].folder} has no readable training images of {join_first(missing)}"
        )
    if not bool((places == _TEST).any()):
        raise DatasetError(
            f"{folder} has a single image per class, which leaves none for the test; expected at least 2 per "
            "class, and 10 for training in all: add images"
            if set(layout.splits) == {"training"}
            else f"{folder} has no readable test images; repair them, or remove their folder"
        )
