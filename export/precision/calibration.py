"""Loads the images by which a precision is chosen: a sample of training images, and validation images.

int8 takes the ranges of its scales from training images. The accuracy that a lower precision loses is
measured on validation images, which the network did not learn from. Test images are for verification only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from foldserve.export.sources.trained_images import load_trained_images
from foldserve.training.checkpoint import load_checkpoint
from foldserve.training.datasets import split_train
from foldserve.training.run.run_folder import CONFIG_FILE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foldserve.export.config import ExportConfig
    from foldserve.training.datasets import Examples

LARGE_SIDE = 64  # pixels; above, an image costs milliseconds in each of many comparisons
TRAINING_COUNT, TRAINING_COUNT_LARGE = 512, 128
VALIDATION_COUNT_LARGE = 1000
_SEED = 2012  # of the sample; any fixed number


@dataclass(frozen=True)
class CalibrationImages:
    """Images uint8 [N, C, H, W]; ``labels`` int64 [N] are the classes of ``validation``."""

    training: NDArray[np.uint8]
    validation: NDArray[np.uint8]
    labels: NDArray[np.int64]
    dataset: str


def load_calibration(config: ExportConfig) -> CalibrationImages | None:
    """Load images of the data set that the checkpoint was trained on; None if there is no checkpoint.

    Raises:
        TrainingError: the checkpoint or its data set cannot be read.
    """
    if config.source is None or config.source.suffix == ".onnx":
        return None
    checkpoint = load_checkpoint(config.source)
    dataset, _ = load_trained_images(checkpoint, config.data_dir)
    training, validation = split_train(dataset, _validation_count(config.source))
    is_large = max(checkpoint.image.shape[1:]) > LARGE_SIDE
    sample = _sample(training, TRAINING_COUNT_LARGE if is_large else TRAINING_COUNT)
    held_out = _sample(validation, VALIDATION_COUNT_LARGE if is_large else len(validation))
    return CalibrationImages(
        training=training.images.numpy()[sample],
        validation=validation.images.numpy()[held_out],
        labels=validation.labels.numpy()[held_out],
        dataset=Path(checkpoint.dataset).name,  # an artifact must not contain paths
    )


def _sample(examples: Examples, count: int) -> NDArray[np.int64]:
    """Return ``count`` positions drawn with a fixed seed, ascending; all if there are fewer."""
    order = np.random.default_rng(_SEED).permutation(len(examples))
    return np.sort(order[:count])


def _validation_count(source: Path) -> int | None:
    """Return how many images the run held out, from the settings beside the checkpoint; None if unknown."""
    folder = source if source.is_dir() else source.parent
    try:
        count = json.loads((folder / CONFIG_FILE).read_text()).get("validation_count")
    except (OSError, ValueError, AttributeError):
        return None
    return count if isinstance(count, int) else None
