"""Loads the data set of a checkpoint again, to verify, evaluate and calibrate an export with."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from foldserve.export.errors import SourceError
from foldserve.export.sources.source import VerificationImages
from foldserve.export.sources.verification_images import image_count, spread
from foldserve.text import escaped
from foldserve.training.datasets import load_dataset, split_train
from foldserve.training.errors import DatasetError
from foldserve.training.settings_file import CONFIG_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.training.checkpoint import Checkpoint
    from foldserve.training.datasets import Dataset


def load_trained_images(checkpoint: Checkpoint, data_dir: Path | None) -> tuple[Dataset, tuple[str, ...]]:
    """Load the data set of ``checkpoint``, prepared as in training; return it and remarks for the user.

    Raises:
        SourceError: its classes or the shape of its images have changed.
        DatasetError: it cannot be found or read.
    """
    # Training skipped unreadable images too, or there would be no checkpoint.
    dataset = load_dataset(
        checkpoint.dataset,
        data_dir,
        image=checkpoint.image,
        skip_broken=True,
        group_by=checkpoint.group_by or None,
        path_column=checkpoint.path_column or None,
        label_column=checkpoint.label_column or None,
    )
    name = checkpoint.dataset_name  # an artifact must not contain paths
    if dataset.labels != checkpoint.labels:
        now, then = set(dataset.labels), set(checkpoint.labels)
        raise SourceError(
            f"{name} has other classes than in training: {len(now - then)} new "
            f"({_first(now - then)}), {len(then - now)} gone ({_first(then - now)}); give the "
            "original folder with --data-dir, or train again"
        )
    shape = tuple(dataset.test_images.shape[1:])
    if shape != checkpoint.image.shape:
        raise SourceError(
            f"the images of {checkpoint.dataset} have shape {list(shape)}; the checkpoint expects "
            f"{list(checkpoint.image.shape)}"
        )
    if checkpoint.fingerprint in ("", dataset.fingerprint):
        return dataset, ()
    return dataset, (
        f"warning: the images of {name} have changed since training: test images may have been trained on, "
        "so the accuracy may be too high",
    )


def validation_images(dataset: Dataset, checkpoint: Checkpoint, path: Path) -> VerificationImages | None:
    """Return the images by which the run at ``path`` chose its best epoch; None if it cannot be said which.

    Up to 64 pixels per side all of them, above 1,000.
    """
    # Split the positions, not the images: the training images of a large data set must not be copied.
    positions = torch.arange(len(dataset.train_images))
    try:
        _, held_out = split_train(replace(dataset, train_images=positions), validation_count(path))
    except DatasetError:  # the images have changed since
        return None
    chosen = torch.from_numpy(spread(len(held_out), image_count(len(held_out), checkpoint.image, None)))
    images = held_out.images[chosen]
    if dataset.validation is None:
        images = dataset.train_images[images]
    return VerificationImages(
        images=images.numpy(),
        labels=held_out.labels[chosen].numpy(),
        synthetic=False,
        origin=f"validation images of {checkpoint.dataset_name}",
    )


def validation_count(source: Path) -> int | None:
    """Return how many images the run held out, from the settings beside the checkpoint; None if unknown."""
    folder = source if source.is_dir() else source.parent
    try:
        count = json.loads((folder / CONFIG_FILE).read_text()).get("validation_count")
    except (OSError, ValueError, AttributeError):
        return None
    return count if isinstance(count, int) else None


def _first(names: set[str]) -> str:
    return escaped(min(names)) if names else "none"
