"""Reads the images of a source one by one: a folder, an image, or a table of files and labels.

Nothing but the entry at hand is held, so that a source may have millions of entries.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from foldserve.imaging.image_files import IMAGE_SUFFIXES, is_hidden, walk_images
from foldserve.tables.errors import DataError
from foldserve.tables.items import Item
from foldserve.tables.open_table import PARQUET, TABLE_SUFFIXES, open_table
from foldserve.text import escaped, join_first

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Folders that hold the classes of a data set that is split, in this order: test images judge best.
_HELD_OUT = ("test", "testing", "val", "valid", "validation", "dev")


@dataclass(frozen=True)
class Source:
    """The images of a source, to be read once.

    Attributes:
        items: the images, in the source's order.
        label_names: the names of labels that are given as numbers; () if the source has none.
        place: the folder or file that is read, for messages.
    """

    items: Iterator[Item] = field(repr=False)
    label_names: tuple[str, ...] = ()
    place: Path = Path()


def open_source(path: Path, path_column: str | None = None) -> Source:
    """Return the images of ``path``, without labels where it is a folder.

    Raises:
        DataError: it does not exist, is of another kind, or holds no images.
    """
    if path.is_dir():
        if shards := _parquet_files(path):
            return _tables(shards, path_column, label_column=None, labelled=False)
        return Source(_in_order(path, None), place=path)
    suffix = _suffix_of_file(path)
    if suffix in IMAGE_SUFFIXES:
        return Source(iter([Item(path.name, path)]), place=path)
    return _tables([path], path_column, label_column=None, labelled=False)


def open_labelled(
    path: Path, labels: Sequence[str], path_column: str | None = None, label_column: str | None = None
) -> Source:
    """Return the images of ``path`` with their labels: FOLDER/LABEL/*, or a table.

    A folder of splits is read at its test images, else its validation images.

    Raises:
        DataError: as `open_source`, or there are no labels.
    """
    if path.is_dir():
        if shards := _parquet_files(path):
            return _tables(shards, path_column, label_column, labelled=True)
        place = _folder_of_classes(path, labels)
        return Source(_in_order(place, place), place=place)
    if _suffix_of_file(path) in IMAGE_SUFFIXES:
        raise DataError(
            f"{path} is an image without a label; expected FOLDER/LABEL/*, or a table with labels"
        )
    return _tables([path], path_column, label_column, labelled=True)


def _suffix_of_file(path: Path) -> str:
    suffix = path.suffix.lower()
    if not path.exists():
        raise DataError(f"{escaped(str(path))} does not exist")
    if not path.is_file():
        raise DataError(f"{escaped(str(path))} is neither a file nor a folder")
    if suffix not in {*IMAGE_SUFFIXES, *TABLE_SUFFIXES}:
        raise DataError(
            f"{escaped(str(path))} is of an unknown kind; expected a folder of images, an image "
            f"({', '.join(sorted(IMAGE_SUFFIXES))}), or a table: {', '.join(TABLE_SUFFIXES)}"
        )
    return suffix


def _tables(
    paths: Sequence[Path], path_column: str | None, label_column: str | None, *, labelled: bool
) -> Source:
    tables = [open_table(path, path_column, label_column, labelled=labelled) for path in paths]
    names = {table.label_names for table in tables}
    if len(names) > 1:
        raise DataError(f"{paths[0].parent} has Parquet files with different names of labels; give one file")
    place = paths[0] if len(paths) == 1 else paths[0].parent
    items = chain.from_iterable(table.items for table in tables)
    return Source(_at_least_one(items, place), names.pop(), place)


def _parquet_files(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder that has no image files beside them."""
    try:
        files = sorted(
            path for path in folder.iterdir() if path.suffix.lower() == PARQUET and not is_hidden(path.name)
        )
    except OSError as error:
        raise DataError(f"{escaped(str(folder))} cannot be listed: {error.strerror or error}") from error
    return files if files and next(walk_images(folder), None) is None else []


def _in_order(folder: Path, classes: Path | None) -> Iterator[Item]:
    """Yield the images below ``folder``; with ``classes`` the first part of each name is its label."""
    return _at_least_one(_walk(folder, is_labelled=classes is not None), folder)


def _walk(folder: Path, *, is_labelled: bool) -> Iterator[Item]:
    place = f"{folder}/"  # joined as text: a Path costs as much as reading a small image
    for name in walk_images(folder):
        label, slash, _ = name.partition("/")
        if not is_labelled:
            yield Item(name, place + name)
        elif slash:
            yield Item(name, place + name, label)
        else:
            yield Item(name, place + name, error=f"lies in no folder of a label (expected {folder}/LABEL/*)")


def _at_least_one(items: Iterator[Item], place: Path) -> Iterator[Item]:
    first = next(items, None)
    if first is None:
        hint = f" ({', '.join(sorted(IMAGE_SUFFIXES))})" if place.is_dir() else ""
        raise DataError(f"{escaped(str(place))} holds no images{hint}")
    return chain([first], items)


def _folder_of_classes(folder: Path, labels: Sequence[str]) -> Path:
    """Return ``folder``, or the folder in it that holds the classes of held-out images."""
    known = {unicodedata.normalize("NFC", label) for label in labels}
    found = {
        unicodedata.normalize("NFC", path.name): path
        for path in sorted(folder.iterdir())
        if path.is_dir() and not is_hidden(path.name)
    }
    if not found:
        raise DataError(
            f"{escaped(str(folder))} has no folders of labels; expected {escaped(folder.name)}/LABEL/*, with "
            f"the labels {join_first([escaped(label) for label in labels])}"
        )
    if known & found.keys():
        return folder
    by_name = {name.casefold(): path for name, path in found.items()}
    return next((by_name[name] for name in _HELD_OUT if name in by_name), folder)
