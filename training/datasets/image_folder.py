"""Loads a folder of images as a data set: finds its classes and splits, and reports them."""

from __future__ import annotations

import hashlib
import json
from itertools import chain
from typing import TYPE_CHECKING

from foldserve.terminal import Terminal
from foldserve.text import escaped
from foldserve.training.datasets.assemble import Collection, make_dataset
from foldserve.training.datasets.decoding import PictureFile, read_digests
from foldserve.training.datasets.folder_layout import FolderLayout, find_layout
from foldserve.training.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from foldserve.tables.splits import Role
    from foldserve.training.datasets.assemble import Preparation
    from foldserve.training.datasets.dataset import Dataset

_CLASSES_SHOWN = 10


def load_image_folder(folder: Path, how: Preparation, terminal: Terminal) -> Dataset:
    """Return the images of ``folder``, decoded in parallel or read from the cache.

    Raises:
        DatasetError: there are fewer than two classes, a class without images, or unreadable files, or the
            layout is ambiguous.
    """
    folder = folder.resolve()
    check_name(folder)
    layout = find_layout(folder)
    _report_layout(folder, layout, terminal)
    files = _read_files(folder, layout, terminal)
    roles: list[Role] = [role for role, split in layout.splits.items() for _ in split.paths]
    collection = Collection(
        name=str(folder),
        labels=layout.labels,
        files=files,
        contents=lambda: _paths(layout),
        classes=[label for split in layout.splits.values() for label in split.labels],
        roles=roles,
        training_place=str(layout.splits["training"].folder),
        fingerprint=_fingerprint(files, layout),
    )
    return make_dataset(collection, how, terminal)


def fingerprint_of_folder(folder: Path) -> str:
    """Return the fingerprint that `load_image_folder` gives the data set in ``folder``, without decoding.

    Raises:
        DatasetError: as `load_image_folder`, except for errors that only decoding finds.
    """
    folder = folder.resolve()
    layout = find_layout(folder)
    return _fingerprint(_read_files(folder, layout, Terminal.silent()), layout)


def _paths(layout: FolderLayout) -> Iterator[Path]:
    return chain.from_iterable(split.paths for split in layout.splits.values())


def _read_files(folder: Path, layout: FolderLayout, terminal: Terminal) -> list[PictureFile]:
    """Return the files of ``layout``, which are in ``folder``, with the digests of their contents."""
    names = [str(path.relative_to(folder)) for path in _paths(layout)]
    digests = read_digests(_paths(layout), len(names), terminal)
    return [PictureFile(*facts) for facts in zip(names, digests, strict=True)]


def check_name(folder: Path) -> None:
    """Check that the path of a data set can be written into checkpoints and reports.

    Raises:
        DatasetError: it cannot.
    """
    if escaped(str(folder)) != str(folder):
        raise DatasetError(
            f"the path {escaped(str(folder))} is not UTF-8, or has control characters, but is written into "
            "checkpoints and reports; rename it"
        )


def labels_text(labels: Sequence[str]) -> str:
    """Return the number of classes and the first of their names."""
    more = len(labels) - _CLASSES_SHOWN
    listed = ", ".join(labels[:_CLASSES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
    return f"{len(labels):,} classes ({listed})"


def _report_layout(folder: Path, layout: FolderLayout, terminal: Terminal) -> None:
    """Report the classes and splits found, before images are decoded."""
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
    terminal.say(f"{folder}: {labels_text(layout.labels)}; {found}")
    for line in layout.left_out:
        terminal.say(f"left out: {line}")


def _fingerprint(files: Sequence[PictureFile], layout: FolderLayout) -> str:
    """Return a hash of the images and their names, which include their classes and splits."""
    digest = hashlib.sha256(json.dumps(layout.labels).encode())
    for file in files:
        digest.update(json.dumps([file.name, file.digest.hex()]).encode())
    return digest.hexdigest()
