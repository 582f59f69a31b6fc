"""Loads the data set that ``--dataset`` names: one of the registry, or a folder of images."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from foldserve.imaging import ImageSpec
from foldserve.terminal import Terminal
from foldserve.training.datasets import cifar10, fashion_mnist, mnist
from foldserve.training.datasets.assemble import Preparation
from foldserve.training.datasets.dataset import Dataset
from foldserve.training.datasets.image_folder import load_image_folder
from foldserve.training.datasets.sources import cache_folder, read_source
from foldserve.training.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable

    from foldserve.imaging import DecodeRule
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
    skip_broken: bool = False,
    terminal: Terminal | None = None,
    arch: str | None = None,
    group_by: str | None = None,
) -> Dataset:
    """Find or download the data set ``name``, check it and load it into memory.

    If ``folder`` is given, no other place is searched. A ``name`` that is not in `DATASETS` is a folder of
    images, now at ``folder`` if that is given. The following apply only to these.

    ``image`` says how to prepare them if that is known, as from a checkpoint. Otherwise they are grey if all
    files are, else RGB, and their size is ``image_size``, else the one that
    `foldserve.training.folder_recipe` chooses for the network ``arch``, or for the one that it would choose.
    ``skip_broken`` leaves out pictures that cannot be read. ``group_by`` is "folder" or a regular expression
    that finds the group of an image in its path; images of one group are not parted by a split that is made
    here.

    ``decode`` is how pictures are decoded, those of the folder and those that the network is later asked
    about; by default as new runs do.

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
        dataset = DATASETS[name](folder, terminal)
        return replace(dataset, image=replace(dataset.image, decode=decode))
    place = folder or Path(name)
    if folder is None and not place.exists() and place.name != name:
        raise DatasetError(
            f"the folder of images {name} does not exist; if it has moved, give its new place with --data-dir"
        )
    if folder is None and not place.exists():
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise DatasetError(
            f"data set {name!r} is not known{hint}; expected one of {', '.join(sorted(DATASETS))}, or "
            "a folder of images"
        )
    how = Preparation(
        image=image,
        image_size=image_size,
        decode=decode,
        skip_broken=skip_broken,
        arch=arch,
        group_by=group_by,
    )
    return load_image_folder(place, how, terminal)


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
