"""Loads tables of images and labels as a data set: CSV, JSON lines and Parquet.

A table is one file, several (``train.csv,test.csv``), or a folder of them. Splits are told by a column
"split" or by the names of several files: train, val, test and the other usual names.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from foldserve.tables import table_files
from foldserve.tables.errors import DataError
from foldserve.tables.open_table import PARQUET
from foldserve.tables.splits import ROLES, Role, role_of
from foldserve.tables.table_files import SEPARATOR
from foldserve.terminal import Terminal
from foldserve.text import escaped, join_first, quote
from foldserve.training.datasets.assemble import Collection, make_dataset
from foldserve.training.datasets.image_folder import check_name, labels_text
from foldserve.training.datasets.picture_files import dataset_errors
from foldserve.training.datasets.table_rows import Rows, TableFile, TableReader
from foldserve.training.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foldserve.training.datasets.assemble import Preparation
    from foldserve.training.datasets.dataset import Dataset
    from foldserve.training.datasets.decoding import PictureFile


def find_tables(place: Path) -> list[Path]:
    """Return the tables that ``place`` is, names or holds; none if it is something else.

    Raises:
        DatasetError: a folder cannot be listed.
    """
    with dataset_errors():
        return table_files.find_tables(place)


def load_image_tables(
    tables: Sequence[Path],
    how: Preparation,
    terminal: Terminal,
    *,
    path_column: str | None = None,
    label_column: str | None = None,
) -> Dataset:
    """Return the images that ``tables`` name or hold.

    Raises:
        DatasetError: a table cannot be read, lacks a column or has one twice, rows are wrong, or there are
            fewer than two classes.
    """
    collection = _collect(tables, path_column, label_column, terminal)
    return make_dataset(collection, how, terminal)


def fingerprint_of_tables(tables: Sequence[Path], path_column: str | None, label_column: str | None) -> str:
    """Return the fingerprint that `load_image_tables` gives the data set, without decoding.

    Raises:
        DatasetError: as `load_image_tables`, except for errors that only decoding finds.
    """
    return _collect(tables, path_column, label_column, Terminal.silent()).fingerprint


def _collect(
    given: Sequence[Path], path_column: str | None, label_column: str | None, terminal: Terminal
) -> Collection:
    paths = [path.resolve() for path in given]
    name = SEPARATOR.join(map(str, paths))
    check_name(Path(name))
    tables = _with_roles(paths, terminal)
    reader = TableReader(tables, path_column, label_column)
    try:
        rows = reader.read(terminal)
    except DataError as error:
        raise DatasetError(str(error)) from error
    roles = _roles_of(rows, reader, name)
    labels = _labels_of(rows, roles, name)
    roles = _drop_unknown(rows, roles, reader, labels)
    _report(rows, roles, labels, name=name, terminal=terminal)
    numbers = {label: number for number, label in enumerate(labels)}
    classes = [numbers[label] for label in rows.labels]
    return Collection(
        name=name,
        labels=labels,
        files=rows.files,
        contents=reader.contents,
        classes=classes,
        roles=roles,
        training_place=name,
        fingerprint=_fingerprint(rows, roles, labels),
        wrong=rows.wrong,
    )


def _with_roles(paths: Sequence[Path], terminal: Terminal) -> list[TableFile]:
    """Return the tables to read, with their splits if there are several, those for training first.

    Raises:
        DatasetError: the names do not tell which table is for what.
    """
    if len(paths) == 1:
        return [TableFile(paths[0])]
    told = [TableFile(path, role_of(path.stem)) for path in paths]
    used = [table for table in told if table.role is not None]
    if not used:
        if all(path.suffix.lower() == PARQUET for path in paths):
            return told
        raise DatasetError(
            f"{join_first([str(path) for path in paths])} are several tables; give one of them, or name "
            "them by their splits: train, val, test"
        )
    doubled = Counter((table.path.parent, table.path.stem) for table in used).most_common(1)[0]
    if doubled[1] > 1:
        raise DatasetError(
            f"{doubled[0][0] / doubled[0][1]} is there as {doubled[1]} tables of different kinds; give or "
            "keep one of them"
        )
    if all(table.role != "training" for table in used):
        raise DatasetError(
            f"no table for training is among {join_first([path.name for path in paths])}; expected one whose "
            "name has train"
        )
    for table in told:
        if table.role is None:
            terminal.say(f"left out: {table.path.name} (not the name of a split)")
    return sorted(used, key=lambda table: ROLES.index(table.role or "training"))


def _roles_of(rows: Rows, reader: TableReader, name: str) -> list[Role]:
    """Return the split of each row, and drop those that lack one though others have one.

    Raises:
        DatasetError: no row is for training.
    """
    if all(role is None for role in rows.roles):
        return ["training"] * len(rows.roles)
    has_role = [role is not None for role in rows.roles]
    missing = [file for file, has in zip(rows.files, has_role, strict=True) if not has]
    rows.wrong += [f"{file}: has no split, and other rows have one" for file in missing]
    reader.keep(rows, has_role)
    roles = [role for role in rows.roles if role is not None]
    if "training" not in roles:
        raise DatasetError(f"{name} has no rows for training; expected train in the column split")
    return roles


def _labels_of(rows: Rows, roles: Sequence[Role], name: str) -> tuple[str, ...]:
    """Return the classes: in the order of the table's own names, or of numbers, or sorted.

    Raises:
        DatasetError: there are fewer than two.
    """
    found = {label for label, role in zip(rows.labels, roles, strict=True) if role == "training"}
    if len(found) < 2:
        wrong = f" ({len(rows.wrong):,} rows are wrong: {join_first(rows.wrong, '; ')})" if rows.wrong else ""
        there = f"only one class, {quote(next(iter(found)))}" if found else "no labelled images"
        raise DatasetError(f"{name} has {there}; expected images of two classes or more{wrong}")
    if rows.label_names:
        order = dict.fromkeys([*rows.label_names, *sorted(found)])
        return tuple(label for label in order if label in found)
    if all(label.isascii() and label.isdigit() for label in found):
        return tuple(sorted(found, key=_numeric_order))
    return tuple(sorted(found))


def _numeric_order(label: str) -> tuple[int, str, str]:
    digits = label.lstrip("0")  # of which there may be more than an int is made of
    return len(digits), digits, label


def _drop_unknown(
    rows: Rows, roles: Sequence[Role], reader: TableReader, labels: tuple[str, ...]
) -> list[Role]:
    """Drop rows of other splits with a label that training lacks; return the splits of the others."""
    known = set(labels)
    is_known = [label in known for label in rows.labels]
    rows.wrong += [
        f"{file}: has the label {quote(label)}, which no training image has"
        for file, label in zip(rows.files, rows.labels, strict=True)
        if label not in known
    ]
    reader.keep(rows, is_known)
    return [role for role, is_kept in zip(roles, is_known, strict=True) if is_kept]


def _report(
    rows: Rows, roles: Sequence[Role], labels: tuple[str, ...], *, name: str, terminal: Terminal
) -> None:
    counts = Counter(roles)
    if set(counts) == {"training"}:
        found = f"{len(roles):,} images, a fifth of each class held out for the test"
    else:
        found = ", ".join(f"{counts[role]:,} images for {role}" for role in ROLES if counts[role])
        if not counts["test"]:
            found += "; those for validation become the test images, and others are held out for validation"
    terminal.say(f"{name}: {labels_text(labels)}; {found}")
    if unused := [label for label in dict.fromkeys(rows.label_names) if label not in labels]:
        terminal.say(
            f"left out: classes without training images: {join_first([escaped(one) for one in unused])}"
        )
    if doubtful := _with_several_labels(rows):
        terminal.say(f"the same picture with different labels: {join_first(doubtful, '; ')}")


def _with_several_labels(rows: Rows) -> list[str]:
    """Return the pictures that rows label differently, each with its labels."""
    found: dict[bytes, dict[str, PictureFile]] = {}
    for file, label in zip(rows.files, rows.labels, strict=True):
        if len(file.digest) == hashlib.sha256().digest_size:  # else it says why the picture cannot be read
            found.setdefault(file.digest, {}).setdefault(label, file)
    return [
        " and ".join(f"{file} is {quote(label)}" for label, file in by_label.items())
        for by_label in found.values()
        if len(by_label) > 1
    ]


def _fingerprint(rows: Rows, roles: Sequence[Role], labels: tuple[str, ...]) -> str:
    """Return a hash of the images with their names, classes and splits."""
    digest = hashlib.sha256(json.dumps(labels).encode())
    for file, label, role in zip(rows.files, rows.labels, roles, strict=True):
        digest.update(json.dumps([file.name, file.digest.hex(), label, role]).encode())
    return digest.hexdigest()
