"""Reads tables of image files and labels: CSV with a header, and JSON lines.

Paths are relative to the table's folder. A wrong row becomes an item with an error that names its line.
"""

from __future__ import annotations

import csv
import json
from typing import IO, TYPE_CHECKING, Any

from foldserve.tables.columns import (
    SPLIT_COLUMN,
    check_names,
    find_image_column,
    find_label_column,
    find_split_column,
    no_label,
)
from foldserve.tables.errors import DataError
from foldserve.tables.items import Item
from foldserve.text import quote

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# Longest line: a path and a label, with room for what else a table may hold.
_MAX_LINE = 1024 * 1024


def read_csv(
    path: Path, path_column: str | None, label_column: str | None, *, labelled: bool
) -> Iterator[Item]:
    """Yield the images that a CSV file names, separated by commas, semicolons or tabs.

    Raises:
        DataError: it cannot be read, is not UTF-8, or its header lacks a column or has one twice.
    """
    with _open(path) as stream:
        try:
            header = stream.readline(_MAX_LINE)
            separator = max(",;\t", key=header.count)
            stream.seek(0)
            reader = csv.reader(stream, delimiter=separator)
            names = [name.strip() for name in next(reader, [])]
            check_names(names, str(path))
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
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as CSV in UTF-8: {error}") from error


def read_json_lines(
    path: Path, path_column: str | None, label_column: str | None, *, labelled: bool
) -> Iterator[Item]:
    """Yield the images that a file of one JSON object per line names.

    Raises:
        DataError: it cannot be read, is not UTF-8, or its first line lacks a key.
    """
    image = label = split = ""
    with _open(path) as stream:
        try:
            number = 0
            while line := stream.readline(_MAX_LINE):
                number += 1
                if not line.strip():
                    continue
                where = f"{path.name}, line {number}"
                entry = _parse(line)
                if isinstance(entry, str):
                    yield Item("", path, where=where, error=entry)
                    continue
                if not image:
                    image = find_image_column(list(entry), path_column, where)
                    label = find_label_column(list(entry), label_column, where) if labelled else ""
                    split = find_split_column(list(entry)) or SPLIT_COLUMN
                given = (entry.get(image), entry.get(label), entry.get(split) if labelled else None)
                yield _item(path, *given, where=where)
        except UnicodeDecodeError as error:
            raise DataError(f"{path} cannot be read in UTF-8: {error}") from error


def _parse(line: str) -> Mapping[str, Any] | str:
    """Return the object of a line, or why it is none."""
    if len(line) == _MAX_LINE:
        return f"is longer than {_MAX_LINE:,} characters"
    try:
        pairs = json.loads(line, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {error}"
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        return "is not a JSON object"
    entry = dict(pairs)
    doubled = [key for key, _ in pairs if [name for name, _ in pairs].count(key) > 1]
    return f"has the key {quote(doubled[0])} more than once" if doubled else entry


def _open(path: Path) -> IO[str]:
    try:
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _item(path: Path, name: object, label: object, split: object, *, where: str) -> Item:
    if not isinstance(name, str) or not name:
        return Item(str(name or ""), path, where=where, error="names no image file")
    if isinstance(label, bool) or not isinstance(label, str | int | None):
        return Item(name, path, where=where, error=no_label(label))
    label = label.strip() if isinstance(label, str) else label
    return Item(name, path.parent / name, label, where, split="" if split is None else str(split).strip())
