"""Makes a data set of pictures whose classes are known: decodes them, splits them and checks the splits.

The test images, read once at the end, are those of the test split, else of the val split, else a seeded
fifth of each class. The validation images, which choose the epoch, are those of the val split if there is a
test split too; else they come from the training images.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from foldserve.imaging import ImageSpec
from foldserve.text import escaped, join_first
from foldserve.training.datasets.dataset import SPLIT_SEED, Dataset, Examples
from foldserve.training.datasets.decoding import decode_all, inspect_images
from foldserve.training.datasets.splitting import grouped
from foldserve.training.errors import DatasetError
from foldserve.training.folder_recipe import choose_arch, choose_side, median_side

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from foldserve.imaging import DecodeRule, FitRule
    from foldserve.tables.splits import Role
    from foldserve.terminal import Terminal
    from foldserve.training.datasets.decoding import Content, Decoded, ImageKind, PictureFile

_TEST_SHARE = 0.2
_BY_FOLDER = "folder"
_TRAINING, _VALIDATION, _TEST = range(3)
_BROKEN_SHOWN = 20
# The share of an image that rounding of its sides may cost.
_SAME_SHAPE = 0.02


@dataclass(frozen=True)
class Preparation:
    """How pictures become a data set; see `load_dataset` for each."""

    image: ImageSpec | None
    image_size: int | None
    decode: DecodeRule
    fit: FitRule
    skip_broken: bool
    arch: str | None
    group_by: str | None


@dataclass(frozen=True)
class Collection:
    """Pictures with their classes, before they are decoded.

    Attributes:
        name: of the data set.
        labels: of the classes.
        files: the pictures.
        contents: begins a pass over the pictures, in the order of ``files``.
        classes: the class of each picture, an index into ``labels``.
        roles: the split of each picture; all "training" if there are no splits.
        training_place: what holds the training images, for messages.
        fingerprint: hash of the pictures, their classes and splits.
        wrong: entries that name no picture, or one without a class: where, and why.
    """

    name: str
    labels: tuple[str, ...]
    files: Sequence[PictureFile]
    contents: Callable[[], Iterator[Content]]
    classes: Sequence[int]
    roles: Sequence[Role]
    training_place: str
    fingerprint: str
    wrong: Sequence[str] = field(default=())

    @property
    def has_splits(self) -> bool:
        """Whether there is more than a training split."""
        return set(self.roles) != {"training"}


def make_dataset(collection: Collection, how: Preparation, terminal: Terminal) -> Dataset:
    """Return the pictures of ``collection``, decoded in parallel or read from the cache, and split.

    Raises:
        DatasetError: a picture or an entry is broken and not to be skipped, a class has no images, or the
            splits cannot be made.
    """
    files, contents = collection.files, collection.contents
    spec = how.image or _choose_spec(
        contents(),
        train_count=list(collection.roles).count("training"),
        how=how,
        terminal=terminal,
    )
    decoded = decode_all(files, contents, spec, terminal)
    _report_broken(collection, decoded, skip_broken=how.skip_broken, terminal=terminal)
    classes, readable = torch.tensor(collection.classes), torch.from_numpy(decoded.readable)
    groups = None if how.group_by is None else _groups([file.name for file in files], how.group_by)
    places = _places(collection, classes, readable, groups)
    if groups is not None:
        _report_parted_groups(groups[readable], places[readable], terminal)
    _check_each_has_its_images(classes[readable], places[readable], collection)
    test_places = torch.nonzero(readable & (places == _TEST)).flatten().tolist()
    images, classes, places = torch.from_numpy(decoded.images), classes[readable], places[readable]
    train_groups = None
    if groups is not None:
        train_groups = groups[readable][places == _TRAINING]
    return Dataset(
        name=collection.name,
        labels=collection.labels,
        image=spec,
        train_images=_rows(images, places == _TRAINING),
        train_labels=classes[places == _TRAINING],
        validation=_examples(images, classes, places == _VALIDATION),
        test_images=_rows(images, places == _TEST),
        test_labels=classes[places == _TEST],
        fingerprint=collection.fingerprint,
        is_folder=True,
        train_groups=train_groups,
        test_names=tuple(files[place].name for place in test_places),
    )


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
        found = [match and match[1 if pattern.groups else 0] for match in map(pattern.search, names)]
        if without := [escaped(name) for name, key in zip(names, found, strict=True) if key is None]:
            raise DatasetError(
                f"--group-by {group_by} finds no group in {len(without):,} of {len(names):,} paths: "
                f"{join_first(without)}"
            )
        keys = [key for key in found if key is not None]
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
    collection: Collection, classes: torch.Tensor, readable: torch.Tensor, groups: torch.Tensor | None
) -> torch.Tensor:
    """Return int [N]: the split of each image, the one that is given or, if there are no splits, drawn.

    Raises:
        DatasetError: no group can be held out.
    """
    if not collection.has_splits and groups is not None and bool(readable.any()):
        is_test = torch.zeros(len(classes), dtype=torch.bool)
        is_test[readable] = grouped(classes[readable], groups[readable], _TEST_SHARE, SPLIT_SEED)
        if not bool(is_test.any()):
            raise DatasetError(
                f"--group-by makes {int(groups.max()) + 1:,} groups of {len(groups):,} images, none of which "
                "can be held out for the test so that each class keeps images; expected smaller groups"
            )
        return is_test.int() * _TEST
    if not collection.has_splits:
        return _seeded_test_share(classes, readable).int() * _TEST
    use: dict[Role, int] = {"training": _TRAINING, "validation": _VALIDATION, "test": _TEST}
    if "test" not in collection.roles:
        use["validation"] = _TEST
    return torch.tensor([use[role] for role in collection.roles], dtype=torch.int)


def _rows(images: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return the chosen rows; if they are contiguous, as a view, so without reading them."""
    places = torch.nonzero(chosen).flatten()
    first_row, last_row = int(places[0]), int(places[-1])
    is_together = last_row - first_row + 1 == len(places)
    return images[first_row : last_row + 1] if is_together else images[places]


def _examples(images: torch.Tensor, classes: torch.Tensor, chosen: torch.Tensor) -> Examples | None:
    return Examples(_rows(images, chosen), classes[chosen]) if bool(chosen.any()) else None


def _choose_spec(
    contents: Iterable[Content],
    *,
    how: Preparation,
    train_count: int,
    terminal: Terminal,
) -> ImageSpec:
    kinds, image_size = inspect_images(contents), how.image_size
    if not kinds:  # no file can be read, which decoding reports
        return ImageSpec("RGB", *(image_size or 1,) * 3, how.decode, how.fit)
    sizes = [(kind.height, kind.width) for kind in kinds]
    grey = all(kind.is_grey for kind in kinds)
    if image_size is None:
        arch = how.arch or choose_arch(train_count, median_side(sizes), is_grey=grey)
        image_size = choose_side(arch, sizes)
    height, width = sizes[0] if image_size is None else (image_size, image_size)
    terminal.say(
        f"images are used as {'grey' if grey else 'RGB'}, {height}x{width} pixels; the files are "
        f"{_kinds_text(kinds)}"
    )
    if text := _shapes_text(sizes, height / width, how.fit):
        terminal.say(text)
    return ImageSpec("L" if grey else "RGB", height, width, max(height, width), how.decode, how.fit)


def _shapes_text(sizes: Sequence[tuple[int, int]], aspect: float, fit: FitRule) -> str:
    """Return what happens to images whose height over width is another than ``aspect``; "" if none is."""
    lost = [1 - min(height / width / aspect, aspect * width / height) for height, width in sizes]
    other = [share for share in lost if share > _SAME_SHAPE]
    if not other:
        return ""
    what = f"{len(other):,} of {len(sizes):,} images are of another shape"
    if fit == "pad":
        return f"{what} and mirrored at their borders (--fit pad)"
    if fit == "stretch":
        return f"{what} and stretched (--fit stretch)"
    return (
        f"{what} and lose up to {max(other):.0%} at their borders (--fit crop); pad and stretch keep all of "
        "them"
    )


def _kinds_text(kinds: Sequence[ImageKind]) -> str:
    """Return the formats and sizes of files."""
    formats = Counter(kind.format for kind in kinds).most_common()
    listed = ", ".join(f"{count:,} {name}" for name, count in formats)
    smallest = min(kinds, key=lambda kind: kind.height * kind.width)
    largest = max(kinds, key=lambda kind: kind.height * kind.width)
    first, last = (f"{kind.height}x{kind.width}" for kind in (smallest, largest))
    return f"{listed}, {first}" + (f" to {last}" if first != last else "") + " pixels"


def _report_broken(
    collection: Collection, decoded: Decoded, *, skip_broken: bool, terminal: Terminal
) -> None:
    """List the entries that are wrong and the pictures that cannot be read.

    Raises:
        DatasetError: there are some, and they are not to be skipped.
    """
    unreadable = [f"{collection.files[place]}: {reason}" for place, reason in decoded.unreadable]
    broken = [*collection.wrong, *unreadable]
    if not broken:
        return
    total = len(collection.files) + len(collection.wrong)
    line = (
        f"{len(broken):,} of {total:,} images in {collection.name} cannot be used "
        f"({join_first(broken, '; ')})"
    )
    for each in broken[:_BROKEN_SHOWN]:
        terminal.say(f"broken: {each}")
    if len(broken) > _BROKEN_SHOWN:
        terminal.say(f"broken: {len(broken) - _BROKEN_SHOWN:,} more")
    if not skip_broken:
        raise DatasetError(f"{line}; repair or remove them, or leave them out with --skip-broken")
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


def _check_each_has_its_images(classes: torch.Tensor, places: torch.Tensor, collection: Collection) -> None:
    """Check that each class has training images, and that there are test images.

    Raises:
        DatasetError: a class has none, or there are no test images.
    """
    counts = np.bincount(classes[places == _TRAINING].numpy(), minlength=len(collection.labels))
    if missing := [label for label, count in zip(collection.labels, counts, strict=True) if count == 0]:
        raise DatasetError(
            f"{collection.training_place} has no readable training images of {join_first(missing)}"
        )
    if not bool((places == _TEST).any()):
        raise DatasetError(
            f"{collection.name} has a single image per class, which leaves none for the test; expected at "
            "least 2 per class, and 10 for training in all: add images"
            if not collection.has_splits
            else f"{collection.name} has no readable test images; repair them, or remove their split"
        )
