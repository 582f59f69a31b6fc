"""Reads tables of image files and labels: CSV with a header, and JSON lines.

Paths are relative to the table's folder. A wrong row becomes an item with an error that names its line.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from contextlib import contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Self

from foldserve.tables.columns import (
    SPLIT_COLUMN,
    check_names,
    count_split,
    find_image_column,
    find_label_column,
    find_split_column,
    split_text,
)
from foldserve.tables.errors import DataError
from foldserve.tables.items import Item
from foldserve.tables.rows import row_item
from foldserve.text import quote

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# Longest line: a path and a label, with room for what else a table may hold.
_MAX_LINE = 1024 * 1024
# What a line without values may consist of; a spreadsheet writes the separators of an empty row.
_BLANKS = " \t\r\n,;"


def read_csv(
    path: Path, path_column: str | None, label_column: str | None, *, labelled: bool
) -> Iterator[Item]:
    """Yield the images that a CSV file names, separated by commas, semicolons or tabs.

    Raises:
        DataError: it cannot be read, is not UTF-8, or its header lacks a column or has one twice.
    """
    with _open_csv(path) as (reader, names):
        image = names.index(find_image_column(names, path_column, str(path)))
        label = names.index(find_label_column(names, label_column, str(path))) if labelled else None
        split_column = find_split_column(names) if labelled else None
        split = None if split_column is None else names.index(split_column)
        while True:
            first_line = reader.line_num + 1
            row = next(reader, None)
            if row is None:
                return
            where = f"{path.name}, line {first_line}"
            if len(row) == len(names):
                given = (row[image], None if label is None else row[label])
                yield _item(path, *given, "" if split is None else row[split], where=where)
            elif row:  # not an empty line
                text = row[image] if len(row) > image else ""
                yield Item(text, path, where=where, error=f"has {len(row)} fields, not {len(names)}")


def read_json_lines(
    path: Path, path_column: str | None, label_column: str | None, *, labelled: bool
) -> Iterator[Item]:
    """Yield the images that a file of one JSON object per line names.

    Raises:
        DataError: it cannot be read, is not UTF-8, or its first line lacks a key.
    """
    image = label = split = ""
    for number, entry in _json_lines(path):
        where = f"{path.name}, line {number}"
        if isinstance(entry, str):
            yield Item("", path, where=where, error=entry)
            continue
        if not image:
            image = find_image_column(list(entry), path_column, where)
            label = find_label_column(list(entry), label_column, where) if labelled else ""
            split = find_split_column(list(entry)) or SPLIT_COLUMN
        given = (entry.get(image), entry.get(label), entry.get(split) if labelled else None)
        yield _item(path, *given, where=where)


def count_csv_splits(path: Path) -> Counter[str]:
    """Return how many rows name each split, and "" for none; empty if there is no column of splits.

    Raises:
        DataError: as `read_csv`.
    """
    counts: Counter[str] = Counter()
    with _open_csv(path) as (reader, names):
        column = find_split_column(names)
        if column is not None:
            place = names.index(column)
            for row in reader:
                if len(row) == len(names):
                    count_split(counts, row[place], str(path))
    return counts


def count_json_splits(path: Path) -> Counter[str]:
    """Return how many lines name each split, and "" for none; empty if no line names one.

    Raises:
        DataError: as `read_json_lines`.
    """
    counts: Counter[str] = Counter()
    column = ""
    for _, entry in _json_lines(path):
        if not isinstance(entry, str):
            column = column or find_split_column(list(entry)) or SPLIT_COLUMN
            count_split(counts, entry.get(column), str(path))
    return counts if counts.keys() - {""} else Counter()


@contextmanager
def _open_csv(path: Path) -> Iterator[tuple[_Rows, list[str]]]:
    """Yield a reader behind the header, which is the first line that is not blank, and the columns' names."""
    with _open(path) as stream:
        try:
            header = next(filter(_is_filled, iter(partial(stream.readline, _MAX_LINE), "")), "")
            separator = max(",;\t", key=header.count)
            stream.seek(0)
            reader = _Rows(stream, separator, path)
            names = [name.strip() for name in next((row for row in reader if _is_filled("".join(row))), [])]
            if not names:
                raise DataError(f"{path} is empty")
            check_names(names, str(path))
            yield reader, names
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as CSV in UTF-8: {error}") from error


def _is_filled(line: str) -> bool:
    return bool(line.strip(_BLANKS))


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Yield the number and the object of each line that is not empty, or why it is none."""
    with _open(path) as stream:
        try:
            for number, line in enumerate(_lines(stream), 1):
                if line.strip():
                    yield number, _parse(line)
        except UnicodeDecodeError as error:
            raise DataError(f"{path} cannot be read in UTF-8: {error}") from error


def _parse(line: str) -> Mapping[str, Any] | str:
    """Return the object of a line, or why it is none."""
    if len(line) == _MAX_LINE:
        return f"is longer than {_MAX_LINE:,} characters"
    try:
        pairs = json.loads(line, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {error}"
    if not isinstance(pairs, tuple):  # which JSON's own lists are not
        return "is not a JSON object"
    counts = Counter(key for key, _ in pairs)
    doubled = [key for key, count in counts.items() if count > 1]
    return f"has the key {quote(doubled[0])} more than once" if doubled else dict(pairs)


class _Rows:
    """The rows of a CSV file, of which none may have `_MAX_LINE` characters."""

    def __init__(self, stream: IO[str], separator: str, path: Path) -> None:
        self._stream, self._path = stream, path
        self._reader = csv.reader(self._lines(), delimiter=separator)
        self._row_length = 0  # of what was read of the present row

    @property
    def line_num(self) -> int:
        """Number of lines read."""
        return self._reader.line_num

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[str]:
        self._row_length = 0
        return next(self._reader)

    def _lines(self) -> Iterator[str]:
        while line := self._stream.readline(_MAX_LINE):
            self._row_length += len(line)
            if self._row_length >= _MAX_LINE:
                raise DataError(f"{self._path} has a row that is longer than {_MAX_LINE:,} characters")
            yield line


def _lines(stream: IO[str]) -> Iterator[str]:
    """Yield the lines; of one that is longer than `_MAX_LINE`, only its beginning."""
    while line := stream.readline(_MAX_LINE):
        yield line
        while len(line) == _MAX_LINE and line[-1] not in "\r\n":
            line = stream.readline(_MAX_LINE)


def _open(path: Path) -> IO[str]:
    try:
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _item(path: Path, name: object, label: object, split: object, *, where: str) -> Item:
    told = split_text(split)
    if not isinstance(name, str) or not name:
        return Item(str(name or ""), path, where=where, error="names no image file", split=told)
    label = label.strip() if isinstance(label, str) else label
    return row_item(path.parent, name, name, label, told, where=where)
