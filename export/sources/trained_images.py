"""Loads the data set of a checkpoint again, to verify, evaluate and calibrate an export with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from foldserve.export.errors import SourceError
from foldserve.text import escaped
from foldserve.training.datasets import load_dataset

if TYPE_CHECKING:
    from foldserve.training.checkpoint import Checkpoint
    from foldserve.training.datasets import Dataset


def load_trained_images(checkpoint: Checkpoint, data_dir: Path | None) -> tuple[Dataset, tuple[str, ...]]:
    """Load the data set of ``checkpoint``, prepared as in training; return it and remarks for the user.

    Raises:
        SourceError: its classes or the shape of its images have changed.
        DatasetError: it cannot be found or read.
    """
    # Training skipped unreadable images too, or there would be no checkpoint.
    dataset = load_dataset(checkpoint.dataset, data_dir, image=checkpoint.image, skip_unreadable=True)
    name = Path(checkpoint.dataset).name  # an artifact must not contain paths
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


def _first(names: set[str]) -> str:
    return escaped(min(names)) if names else "none"
