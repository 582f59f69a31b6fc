"""Draws a preview of augmented images: per row, one training image and several augmented versions of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure

from foldserve.training.datasets import split_train
from foldserve.training.engine.random_seeds import derived_seed
from foldserve.training.errors import RunError
from foldserve.training.run.chosen_augmentation import chosen_augmentation, chosen_mixing
from foldserve.training.run.fonts import fonts_for
from foldserve.training.run.pictures import check_writable, draw_images, shown

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from foldserve.training.config import TrainConfig
    from foldserve.training.datasets import Dataset

_IMAGES, _DRAWS = 8, 7


def check_preview(path: Path) -> None:
    """Check that ``path`` can be written, before any image is read.

    Raises:
        RunError: ``path`` cannot be written.
    """
    known = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in known:
        raise RunError(
            f"the preview {path} cannot be written: expected a name that ends in .{', .'.join(sorted(known))}"
        )
    try:
        check_writable(path)
    except OSError as error:
        raise _cannot_be_written(path, error) from error


def write_preview(path: Path, config: TrainConfig, dataset: Dataset) -> None:
    """Draw training images of ``dataset``, augmented as ``config`` says, into the PNG ``path``.

    Raises:
        RunError: the file cannot be written.
    """
    training, _ = split_train(dataset, config.validation_count)
    originals = training.images[_one_of_each(training.labels)[:_IMAGES]]
    rows = torch.stack(
        [originals, *augmented_draws(originals, config, dataset)], dim=1
    )  # [N, 1 + draws, ...]
    captions = ["original", "augmented"] + [""] * (rows.shape[0] * rows.shape[1] - 2)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fonts_for([dataset.short_name]):
            title = f"{shown(dataset.short_name)} as augmented for {config.arch}"
            draw_images(path, rows.flatten(0, 1), captions, title)
    except OSError as error:
        raise _cannot_be_written(path, error) from error


def _cannot_be_written(path: Path, error: OSError) -> RunError:
    return RunError(f"the preview {path} cannot be written: {error}; give a .png in another folder")


def augmented_draws(originals: Tensor, config: TrainConfig, dataset: Dataset) -> list[Tensor]:
    """Return ``originals`` uint8 [N, C, H, W] augmented several times, as in training steps."""
    augmentation = chosen_augmentation(config, dataset)
    mixing = chosen_mixing(config, dataset)
    # The picture shows no targets, so any class will do.
    labels = torch.zeros(len(originals), dtype=torch.int64)
    draws = []
    for draw in range(_DRAWS):
        generator = torch.Generator().manual_seed(derived_seed(config.seed, "preview", draw))
        images, _ = mixing(augmentation(originals, generator), labels, generator)
        draws.append(images.round().to(torch.uint8))
    return draws


def _one_of_each(labels: Tensor) -> Tensor:
    """Return indices of images ordered by occurrence: the first of each class, then the second of each."""
    occurrence = torch.zeros_like(labels)
    for index in range(int(labels.max()) + 1):
        of_class = labels == index
        occurrence[of_class] = torch.arange(int(of_class.sum()))
    return (occurrence * (int(labels.max()) + 1) + labels).argsort(stable=True)
