"""Opens a table of images by its suffix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from foldserve.tables.text_tables import (
    count_csv_splits,
    count_json_splits,
    read_csv,
    read_json_lines,
)

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator
    from pathlib import Path

    from foldserve.tables.items import Item

PARQUET = ".parquet"
_TEXT = {".csv": read_csv, ".jsonl": read_json_lines, ".ndjson": read_json_lines}
_SPLITS = {".csv": count_csv_splits, ".jsonl": count_json_splits, ".ndjson": count_json_splits}
TABLE_SUFFIXES = (*_TEXT, PARQUET)


@dataclass(frozen=True)
class Table:
    """The images of a table, to be read once.

    Attributes:
        items: the images, in the table's order.
        label_names: the names of labels that are given as numbers; () if the table has none.
    """

    items: Iterator[Item] = field(repr=False)
    label_names: tuple[str, ...] = ()


def open_table(
    path: Path, path_column: str | None = None, label_column: str | None = None, *, labelled: bool
) -> Table:
    """Return the images that ``path`` names or holds, with their labels and splits if ``labelled``.

    Raises:
        DataError: it cannot be read, or lacks a column; for a file of text when the first image is asked for.
    """
    if path.suffix.lower() == PARQUET:
        from foldserve.tables.parquet_table import ParquetTable  # noqa: PLC0415  # pyarrow is optional

        table = ParquetTable(path, path_column, label_column, labelled=labelled)
        return Table(table.items(), table.label_names)
    return Table(_TEXT[path.suffix.lower()](path, path_column, label_column, labelled=labelled))


def count_splits(path: Path) -> Counter[str]:
    """Return how many rows of ``path`` name each split, as written, and "" for none.

    It is empty, or has "" alone, if the table has no splits.

    Raises:
        DataError: it cannot be read.
    """
    if path.suffix.lower() == PARQUET:
        from foldserve.tables.parquet_table import count_parquet_splits  # noqa: PLC0415  # pyarrow is optional

        return count_parquet_splits(path)
    return _SPLITS[path.suffix.lower()](path)
