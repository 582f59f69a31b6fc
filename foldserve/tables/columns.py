"""Finds the columns of a table that hold images and labels."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath
from typing import TYPE_CHECKING

from foldserve.imaging.image_files import IMAGE_SUFFIXES
from foldserve.tables.errors import DataError
from foldserve.text import join_names, quote

if TYPE_CHECKING:
    from collections.abc import Sequence

# The usual names, in the order in which they are looked for; the first are those of Hugging Face.
IMAGE_COLUMNS = ("image", "file_name", "path", "file", "filename", "filepath", "image_path", "img", "picture")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target")

SPLIT_COLUMN = "split"
MOST_SPLITS = 1000


def check_names(names: Sequence[str], where: str) -> None:
    """Check that no column occurs twice.

    Raises:
        DataError: one does.
    """
    if doubled := [name for name, count in Counter(names).items() if count > 1]:
        remedy = _header_hint(names) or "; rename or remove one"
        raise DataError(f"{where} has the column {quote(doubled[0])} more than once{remedy}")


def find_image_column(names: Sequence[str], given: str | None, where: str) -> str:
    """Return the column of images.

    Raises:
        DataError: there is none.
    """
    return _find(names, given, IMAGE_COLUMNS, where, what="images", flag="--path-column")


def find_label_column(names: Sequence[str], given: str | None, where: str) -> str:
    """Return the column of labels.

    Raises:
        DataError: there is none.
    """
    return _find(names, given, LABEL_COLUMNS, where, what="labels", flag="--label-column")


def find_split_column(names: Sequence[str]) -> str | None:
    """Return the column that names the split of each image, if there is one."""
    return next((name for name in names if name.casefold() == SPLIT_COLUMN), None)


def split_text(value: object) -> str:
    """Return the split that ``value``, of the column of splits, names; "" if it names none."""
    return "" if value is None else str(value).strip()


def count_split(counts: Counter[str], value: object, where: str) -> None:
    """Add a row, whose column of splits has ``value``, to ``counts``.

    Raises:
        DataError: there are so many different ones that they are no splits.
    """
    counts[split_text(value)] += 1
    if len(counts) > MOST_SPLITS:
        raise DataError(
            f"{where} has more than {MOST_SPLITS:,} different splits in its column {SPLIT_COLUMN}; call the "
            "column otherwise if it is something else, or take --split all"
        )


def _find(
    names: Sequence[str], given: str | None, usual: Sequence[str], where: str, *, what: str, flag: str
) -> str:
    if given is not None:
        if given not in names:
            there = f"{join_names(names)}{_header_hint(names)}"
            raise DataError(f"{where} has no column {quote(given)}; it has {there}")
        return given
    by_name = {name.casefold(): name for name in reversed(names)}
    for name in usual:
        if name in by_name:
            return by_name[name]
    remedy = _header_hint(names) or f"; name one with {flag}, or call it {usual[0]}"
    raise DataError(f"{where} has no column of {what}: it has {join_names(names)}{remedy}")


def _header_hint(names: Sequence[str]) -> str:
    """Return what to do if the ``names`` are a file and its label; "" if they may be those of columns."""
    if not any(PurePath(name).suffix.lower() in IMAGE_SUFFIXES for name in names):
        return ""
    return f"; the header is missing: put a line such as {IMAGE_COLUMNS[0]},{LABEL_COLUMNS[0]} above the rows"
