"""Reads Parquet tables of images: the layout of Hugging Face's `datasets`, and plain columns.

    image   struct {bytes, path}, or binary, or the path of a file as text
    label   a number whose names are in the file's metadata, or text

Needs pyarrow (the extra `parquet`); `datasets` is not needed.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from foldserve.tables.columns import (
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
from foldserve.text import escaped, quote

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ROWS_HELD = 32
_SPLITS_HELD = 65_536


class ParquetTable:
    """One Parquet file; its footer is read when it is made, its rows as they are asked for.

    Attributes:
        label_names: the names of labels that are numbers; () if the file has none.
    """

    def __init__(
        self, path: Path, path_column: str | None, label_column: str | None, *, labelled: bool
    ) -> None:
        """Open the file.

        Raises:
            DataError: it cannot be read, or has no column of images or, if ``labelled``, of labels.
        """
        self._path = path
        self._file = _open(path)
        schema = self._file.schema_arrow
        check_names(schema.names, str(path))
        self._image = self._find_images(schema, path_column)
        self._label = find_label_column(schema.names, label_column, str(path)) if labelled else ""
        self._split = (find_split_column(schema.names) if labelled else None) or ""
        self.label_names = _label_names(schema, self._label)

    def items(self) -> Iterator[Item]:
        """Yield the images, in order.

        Raises:
            DataError: the file is damaged.
        """
        columns = [name for name in (self._image, self._label, self._split) if name]
        row = 0
        try:
            for batch in self._file.iter_batches(_ROWS_HELD, columns=columns):
                nothing = [None] * len(batch)
                values, labels, splits = (
                    batch.column(name).to_pylist() if name else nothing
                    for name in (self._image, self._label, self._split)
                )
                for value, label, split in zip(values, labels, splits, strict=True):
                    yield self._item(value, label, split_text(split), row)
                    row += 1
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{self._path} is damaged after row {row}: {_line(error)}") from error

    def _find_images(self, schema: pa.Schema, given: str | None) -> str:
        fit = [name for name in schema.names if _may_hold_images(schema.field(name).type)]
        if not fit:
            raise DataError(
                f"{self._path} has no images: expected a column of bytes, of structs with bytes, or of paths"
            )
        if given is not None and given in schema.names and given not in fit:
            raise DataError(
                f"{self._path}: the column {quote(given)} is {schema.field(given).type}, not images"
            )
        with_bytes = [name for name in fit if not _is_text(schema.field(name).type)]
        return (
            with_bytes[0]
            if given is None and len(with_bytes) == 1
            else find_image_column(fit, given, str(self._path))
        )

    def _item(self, value: Any, label: Any, split: str, row: int) -> Item:
        where = f"{self._path.name}, row {row}"
        name = where
        if isinstance(value, dict):
            path = value.get("path")
            name = path if path and isinstance(path, str) else where
            value = value.get("bytes") or path
        elif isinstance(value, str):
            name = value or where
        if isinstance(value, bytes) or (isinstance(value, str) and value):
            return row_item(self._path.parent, name, value, label, split, where=where)
        return Item(name, b"", where=where, error="has no image", split=split)


def count_parquet_splits(path: Path) -> Counter[str]:
    """Return how many rows name each split, and "" for none; only the column of splits is read.

    Raises:
        DataError: the file cannot be read.
    """
    file = _open(path)
    column = find_split_column(file.schema_arrow.names)
    if column is None:
        return Counter({"": file.metadata.num_rows})
    counts: Counter[str] = Counter()
    try:
        for batch in file.iter_batches(_SPLITS_HELD, columns=[column]):
            for split in batch.column(0).to_pylist():
                count_split(counts, split, str(path))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {_line(error)}") from error
    return counts


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {_line(error)}") from error


def _may_hold_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(index).name == "bytes" for index in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind)) or _is_text(kind)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _label_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Return the names of a ClassLabel, which `datasets` writes into the metadata as JSON."""
    try:
        facts = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = facts["info"]["features"][label]["names"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _line(error: Exception) -> str:
    return escaped(str(error).partition("\n")[0])
