"""The data set that a checkpoint was trained on, loaded once more to prove, judge and calibrate with."""

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
    """Return the data set of ``checkpoint``, prepared as it was for it, and remarks for the person exporting.

    Raises:
        SourceError: it has other classes now, or images of another shape.
        DatasetError: it cannot be found or read.
    """
    # What could not be read was left out of the training, or there would be no checkpoint.
    dataset = load_dataset(checkpoint.dataset, data_dir, image=checkpoint.image, skip_unreadable=True)
    name = Path(checkpoint.dataset).name  # no path belongs into an artifact
    if dataset.labels != checkpoint.labels:
        now, then = set(dataset.labels), set(checkpoint.labels)
        raise SourceError(
            f"{name} has other classes than the checkpoint was trained on: {len(now - then)} new "
            f"({_first(now - then)}), {len(then - now)} gone ({_first(then - now)}); give the folder as it "
            "was, with --data-dir, or train again"
        )
    shape = tuple(dataset.test_images.shape[1:])
    if shape != checkpoint.image.shape:
        raise SourceError(
            f"{checkpoint.dataset}'s images are {list(shape)}, the checkpoint takes "
            f"{list(checkpoint.image.shape)}"
        )
    if checkpoint.fingerprint in ("", dataset.fingerprint):
        return dataset, ()
    return dataset, (
        f"warning: the images of {name} have changed since the training: those it is judged by may be ones "
        "it learnt from, so the accuracy says less",
    )


def _first(names: set[str]) -> str:
    return escaped(min(names)) if names else "none"
