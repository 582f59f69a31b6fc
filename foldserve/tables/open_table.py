"""Opens a table of images by its suffix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from foldserve.tables.text_tables import read_csv, read_json_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from foldserve.tables.items import Item

PARQUET = ".parquet"
_TEXT = {".csv": read_csv, ".jsonl": read_json_lines, ".ndjson": read_json_lines}
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
