"""Reads the rows of tables for training: pictures with their classes and splits, and the rows that are wrong.

The contents of a Parquet file are read once to hash them and again to decode them, and not held.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from itertools import chain, compress
from pathlib import Path
from typing import TYPE_CHECKING

from foldserve.ordered import in_chunks, run_in_order
from foldserve.tables.open_table import open_table
from foldserve.tables.rows import whole_number
from foldserve.tables.splits import ROLE_WORDS, Role
from foldserve.text import escaped, is_legible, join_first, quote
from foldserve.training.datasets.decoding import PictureFile, digest_of, worker_count
from foldserve.training.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from foldserve.tables.items import Item
    from foldserve.tables.open_table import Table
    from foldserve.terminal import Terminal
    from foldserve.training.datasets.decoding import Content

# Pictures that a thread hashes at a time. Of a Parquet file they are in memory, several portions at once.
_PORTION = 8


@dataclass(frozen=True)
class TableFile:
    """A table, and the split that all of its rows belong to; None if its rows say, or nothing does."""

    path: Path
    role: Role | None = None


@dataclass
class Rows:
    """The usable rows of tables, in order.

    Attributes:
        files: the pictures.
        labels: the name of each picture's class.
        roles: the split of each picture; None where neither the table nor its row gives one.
        wrong: the other rows: where, and why.
        label_names: the names of labels that are given as numbers, in their order; () if there are none.
    """

    files: list[PictureFile] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    roles: list[Role | None] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    label_names: tuple[str, ...] = ()

    def keep(self, is_kept: Sequence[bool]) -> None:
        """Drop the rows that are not kept."""
        self.files = list(compress(self.files, is_kept))
        self.labels = list(compress(self.labels, is_kept))
        self.roles = list(compress(self.roles, is_kept))


class TableReader:
    """Reads ``tables``, again for each pass over the contents of their pictures."""

    def __init__(
        self, tables: Sequence[TableFile], path_column: str | None, label_column: str | None
    ) -> None:
        self._tables = tables
        self._columns = (path_column, label_column)
        # Of each row that the tables have, whether it is used.
        self._is_used: list[bool] = []
        # The paths of the pictures that are used; None if a table holds the pictures themselves.
        self._paths: list[Path] | None = None

    def read(self, terminal: Terminal) -> Rows:
        """Return the rows, with the hashes of the pictures.

        Raises:
            DataError: a table cannot be read, or lacks a column.
            DatasetError: the tables name their labels differently.
        """
        rows, paths = Rows(), []
        names = set()
        with terminal.counting_on("reading") as advance:
            for table, opened in ((table, self._open(table)) for table in self._tables):
                names.add(opened.label_names)
                rows.label_names = tuple(map(_normal, opened.label_names))
                chunks = run_in_order(in_chunks(opened.items, _PORTION), _with_digests, worker_count())
                for item, digest in chain.from_iterable(chunks):
                    fault = _add(rows, item, digest, table.role)
                    self._is_used.append(not fault)
                    if fault:
                        rows.wrong.append(f"{_place(item)}: {fault}")
                    elif isinstance(item.content, Path):
                        paths.append(item.content)
                    advance(1)
        if len(names) > 1:
            raise DatasetError(
                f"{join_first([str(table.path) for table in self._tables])} name their labels differently in "
                "their metadata; give files of one data set"
            )
        self._paths = paths if len(paths) == len(rows.files) else None
        if not rows.label_names:
            rows.labels = _as_whole_numbers(rows.labels)
        return rows

    def keep(self, rows: Rows, is_kept: Sequence[bool]) -> None:
        """Use only some of the ``rows`` that `read` returned."""
        rows.keep(is_kept)
        if self._paths is not None:
            self._paths = list(compress(self._paths, is_kept))
        kept = iter(is_kept)
        self._is_used = [is_used and next(kept) for is_used in self._is_used]

    def contents(self) -> Iterator[Content]:
        """Yield the pictures of the rows that are used, in order.

        Raises:
            DatasetError: the tables have changed since they were read.
        """
        if self._paths is not None:
            yield from self._paths
            return
        items = chain.from_iterable(self._open(table).items for table in self._tables)
        try:
            for item, is_used in zip(items, self._is_used, strict=True):
                if is_used:
                    yield item.content
        except ValueError as error:
            raise DatasetError(
                "the tables have changed while they were being read; run again when nothing writes into them"
            ) from error

    def _open(self, table: TableFile) -> Table:
        return open_table(table.path, *self._columns, labelled=True)


def _with_digests(items: Sequence[Item]) -> list[tuple[Item, bytes]]:
    """Return each item with the hash of its picture; of a wrong one, without."""
    return [(item, b"" if item.error else digest_of(item.content)) for item in items]


def _add(rows: Rows, item: Item, digest: bytes, table_role: Role | None) -> str:
    """Add ``item`` to ``rows``; return why it cannot be used, or ""."""
    if item.error:
        return item.error
    label = item.label
    if isinstance(label, int) and rows.label_names:
        if not 0 <= label < len(rows.label_names):
            return f"has the label {label}; the table names {len(rows.label_names)} labels"
        label = rows.label_names[label]
    label = "" if label is None else _normal(str(label))
    if not label:
        return "has no label"
    if not is_legible(label):
        return f"has the label {quote(label)}, which has control characters"
    role = ROLE_WORDS.get(item.split.casefold()) if item.split else table_role
    if item.split and role is None:
        return f"has the split {quote(item.split)}; expected train, val or test"
    rows.files.append(PictureFile(_found_name(item), digest, item.where))
    rows.labels.append(label)
    rows.roles.append(role)
    return ""


def _found_name(item: Item) -> str:
    """Return the name by which the file was found: one written as on Windows tells --group-by no folder."""
    is_as_given = isinstance(item.content, bytes) or str(item.content).endswith(item.name)
    return item.name if is_as_given else item.name.replace("\\", "/")


def _as_whole_numbers(labels: list[str]) -> list[str]:
    """Return "3" for "3.0" if all ``labels`` are whole numbers: among others, such as 3.5, it is a name."""
    numbers = [number for label in labels if (number := whole_number(label)) is not None]
    return numbers if len(numbers) == len(labels) else labels


def _normal(label: str) -> str:
    """Return ``label`` as names of folders are taken: macOS writes an accent as a separate character."""
    return unicodedata.normalize("NFC", label)


def _place(item: Item) -> str:
    """Return where ``item`` is named, for a message."""
    return f"{item.where}: {escaped(item.name)}" if item.name not in ("", item.where) else item.where
