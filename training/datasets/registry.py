"""The data sets that ``--dataset`` knows, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from imaging import ImageSpec
from training.datasets import fashion_mnist
from training.datasets.dataset import Dataset
from training.datasets.sources import cache_folder, read_source
from training.errors import DatasetError
from training.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def load_dataset(name: str, folder: Path | None = None, *, terminal: Terminal | None = None) -> Dataset:
    """Find or fetch the data set ``name``, check it and hold it in memory; ``folder`` is the only place then.

    Raises:
        DatasetError: the name is not known, or the files are found nowhere sound.
    """
    if name not in DATASETS:
        raise DatasetError(f"data set {name!r} is not known; expected one of {', '.join(sorted(DATASETS))}")
    return DATASETS[name](folder, terminal or Terminal())


def _load_fashion_mnist(folder: Path | None, terminal: Terminal) -> Dataset:
    source = fashion_mnist.SOURCE
    arrays = read_source(source, folder=folder, cache=cache_folder(source.name), terminal=terminal)
    return Dataset(
        name=source.name,
        labels=fashion_mnist.LABELS,
        image=ImageSpec(channel_order="L", height=28, width=28, resize_shorter_side=28),
        train_images=torch.from_numpy(arrays["train_images"]).unsqueeze(1),
        train_labels=torch.from_numpy(arrays["train_labels"]).long(),
        test_images=torch.from_numpy(arrays["test_images"]).unsqueeze(1),
        test_labels=torch.from_numpy(arrays["test_labels"]).long(),
    )


DATASETS: dict[str, Callable[[Path | None, Terminal], Dataset]] = {"fashion-mnist": _load_fashion_mnist}
