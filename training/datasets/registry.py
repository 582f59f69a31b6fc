"""Loads the data set that ``--dataset`` names: one of the registry, or a folder of images."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from foldserve.imaging import ImageSpec
from foldserve.tables.open_table import TABLE_SUFFIXES
from foldserve.tables.table_files import named_tables
from foldserve.terminal import Terminal
from foldserve.text import join_first
from foldserve.training.datasets import cifar10, fashion_mnist, mnist
from foldserve.training.datasets.assemble import Preparation
from foldserve.training.datasets.dataset import Dataset
from foldserve.training.datasets.image_folder import fingerprint_of_folder, load_image_folder
from foldserve.training.datasets.image_table import (
    find_tables,
    fingerprint_of_tables,
    load_image_tables,
)
from foldserve.training.datasets.sources import cache_folder, read_source
from foldserve.training.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable

    from foldserve.imaging import DecodeRule, FitRule
    from foldserve.training.datasets.sources import Source


# How new runs decode pictures.
_DECODE: DecodeRule = "scaled"


def load_dataset(
    name: str,
    folder: Path | None = None,
    *,
    image: ImageSpec | None = None,
    image_size: int | None = None,
    decode: DecodeRule | None = None,
    fit: FitRule = "crop",
    skip_broken: bool = False,
    terminal: Terminal | None = None,
    arch: str | None = None,
    group_by: str | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
) -> Dataset:
    """Find or download the data set ``name``, check it and load it into memory.

    If ``folder`` is given, no other place is searched. A ``name`` that is not in `DATASETS` is a folder of
    images or tables (see `foldserve.training.datasets.image_table`), now at ``folder`` if that is given. The
    following apply only to these.

    ``image`` says how to prepare them if that is known, as from a checkpoint. Otherwise they are grey if all
    files are, else RGB, and their size is ``image_size``, else the one that
    `foldserve.training.folder_recipe` chooses for the network ``arch``, or for the one that it would choose.
    ``skip_broken`` leaves out pictures that cannot be read. ``group_by`` is "folder" or a regular expression
    that finds the group of an image in its path; images of one group are not parted by a split that is made
    here. ``path_column`` and ``label_column`` name the columns of tables.

    ``decode`` and ``fit`` are how pictures are decoded and brought to the input's size, those of the folder
    and those that the network is later asked about; by default as new runs do.

    Raises:
        DatasetError: the name is not known, or no place has all files undamaged.
    """
    terminal = terminal or Terminal()
    decode = decode or _DECODE
    if name in DATASETS:
        if image_size is not None:
            raise DatasetError(f"image-size is for folders of images; {name} has its own: leave it out")
        if group_by is not None:
            raise DatasetError(f"group-by is for folders of images; {name} has its own split: leave it out")
        _refuse_columns(name, path_column, label_column)
        dataset = DATASETS[name](folder, terminal)
        return replace(dataset, image=replace(dataset.image, decode=decode, fit=fit))
    place = folder or Path(name)
    tables = find_tables(place)
    if folder is None and not tables and not place.exists():
        raise DatasetError(_unknown(name))
    how = Preparation(
        image=image,
        image_size=image_size,
        decode=decode,
        fit=fit,
        skip_broken=skip_broken,
        arch=arch,
        group_by=group_by,
    )
    if tables:
        return load_image_tables(tables, how, terminal, path_column=path_column, label_column=label_column)
    _refuse_columns(str(place), path_column, label_column)
    return load_image_folder(place, how, terminal)


def fingerprint_of(
    place: Path, path_column: str | None = None, label_column: str | None = None
) -> str | None:
    """Return the fingerprint that `load_dataset` gives the images at ``place``; None if nothing is there.

    Raises:
        DatasetError: as `load_dataset`, except for errors that only decoding finds.
    """
    if tables := find_tables(place):
        return fingerprint_of_tables(tables, path_column, label_column)
    return fingerprint_of_folder(place) if place.exists() else None


def _unknown(name: str) -> str:
    """Return why there is no data set ``name``."""
    if missing := [str(part) for part in named_tables(Path(name)) if not part.is_file()]:
        return f"{join_first(missing)} does not exist; expected each of the tables {name}"
    if Path(name).name != name:
        what = "file" if Path(name).suffix.lower() in TABLE_SUFFIXES else "folder of images"
        return f"the {what} {name} does not exist; if it has moved, give its new place with --data-dir"
    near = difflib.get_close_matches(name, DATASETS, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return (
        f"data set {name!r} is not known{hint}; expected one of {', '.join(sorted(DATASETS))}, a folder of "
        f"images, or a table of images and labels ({', '.join(TABLE_SUFFIXES)})"
    )


def _refuse_columns(name: str, path_column: str | None, label_column: str | None) -> None:
    if path_column is not None or label_column is not None:
        flag = "--path-column" if path_column is not None else "--label-column"
        raise DatasetError(f"{flag} is for tables of images; {name} is none: leave it out")


def _load_idx(
    source: Source,
    labels: tuple[str, ...],
    folder: Path | None,
    terminal: Terminal,
    *,
    flip_keeps_class: bool,
) -> Dataset:
    arrays = read_source(source, folder=folder, cache=cache_folder(source.name), terminal=terminal)
    return Dataset(
        name=source.name,
        labels=labels,
        image=ImageSpec(channel_order="L", height=28, width=28, resize_shorter_side=28),
        train_images=torch.from_numpy(arrays["train_images"]).unsqueeze(1),
        train_labels=torch.from_numpy(arrays["train_labels"]).long(),
        test_images=torch.from_numpy(arrays["test_images"]).unsqueeze(1),
        test_labels=torch.from_numpy(arrays["test_labels"]).long(),
        flip_keeps_class=flip_keeps_class,
        is_on_black=True,
    )


def _load_fashion_mnist(folder: Path | None, terminal: Terminal) -> Dataset:
    return _load_idx(fashion_mnist.SOURCE, fashion_mnist.LABELS, folder, terminal, flip_keeps_class=True)


def _load_mnist(folder: Path | None, terminal: Terminal) -> Dataset:
    return _load_idx(mnist.SOURCE, mnist.LABELS, folder, terminal, flip_keeps_class=False)


def _load_cifar10(folder: Path | None, terminal: Terminal) -> Dataset:
    source = cifar10.SOURCE
    arrays = read_source(source, folder=folder, cache=cache_folder(source.name), terminal=terminal)
    records = torch.from_numpy(arrays["records"])
    images = records[:, 1:].reshape(-1, *cifar10.IMAGE_SHAPE)
    labels = records[:, 0].long()
    train_count = len(records) * 5 // 6  # five files of training records, one of test records
    return Dataset(
        name=source.name,
        labels=cifar10.LABELS,
        image=ImageSpec(channel_order="RGB", height=32, width=32, resize_shorter_side=32),
        train_images=images[:train_count],
        train_labels=labels[:train_count],
        test_images=images[train_count:],
        test_labels=labels[train_count:],
    )


DATASETS: dict[str, Callable[[Path | None, Terminal], Dataset]] = {
    "cifar10": _load_cifar10,
    "fashion-mnist": _load_fashion_mnist,
    "mnist": _load_mnist,
}
