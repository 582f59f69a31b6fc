"""Loads the images by which a precision is chosen: some to calibrate with, others to judge by.

int8 takes the ranges of its scales from the calibration images. The accuracy that a lower precision loses is
measured on images that calibrated nothing. A checkpoint's data set has training images for the first and
validation images, which the network did not learn from, for the second; its test images are for verification
only. For other networks the folder of ``--images`` is split in two. If its images have no labels, those that
the network gives them are used: then it is not accuracy that is lost but agreement with the network.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foldserve.export.errors import PrecisionError
from foldserve.export.sources.flags import source_kind
from foldserve.export.sources.trained_images import load_trained_images, validation_count
from foldserve.training.checkpoint import load_checkpoint
from foldserve.training.datasets import split_train

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foldserve.export.config import ExportConfig
    from foldserve.export.sources.source import VerificationImages
    from foldserve.training.datasets import Examples

LARGE_SIDE = 64  # pixels; above, an image costs milliseconds in each of many comparisons
TRAINING_COUNT, TRAINING_COUNT_LARGE = 512, 128
VALIDATION_COUNT_LARGE = 1000
_SEED = 2012  # of the sample; any fixed number


# Fewer distinct images of a folder do not give ranges and a judgement.
FEWEST_IMAGES = 16


@dataclass(frozen=True)
class CalibrationImages:
    """Images uint8 [N, C, H, W]; none is in both arrays.

    Attributes:
        training: to calibrate with.
        validation: to judge by.
        labels: the classes of ``validation``, int64 [N].
        dataset: where the images come from.
        are_labels_true: whether ``labels`` are known, rather than the network's own answers.
    """

    training: NDArray[np.uint8]
    validation: NDArray[np.uint8]
    labels: NDArray[np.int64]
    dataset: str
    are_labels_true: bool = True


def load_calibration(
    config: ExportConfig, verification: VerificationImages, expected: NDArray[np.float32]
) -> CalibrationImages:
    """Load images of the data set that a checkpoint was trained on; for other sources split ``verification``.

    Args:
        config: names the source.
        verification: the images of the source.
        expected: the network's logits of ``verification``, [N, K].

    Raises:
        PrecisionError: there are no real images, or too few.
        TrainingError: the checkpoint or its data set cannot be read.
    """
    if source_kind(config) != "run":
        return split_images(verification, expected)
    assert config.source is not None
    checkpoint = load_checkpoint(config.source)
    dataset, _ = load_trained_images(checkpoint, config.data_dir)
    training, validation = split_train(dataset, validation_count(config.source))
    is_large = max(checkpoint.image.shape[1:]) > LARGE_SIDE
    sample = _sample(training, TRAINING_COUNT_LARGE if is_large else TRAINING_COUNT)
    held_out = _sample(validation, VALIDATION_COUNT_LARGE if is_large else len(validation))
    return CalibrationImages(
        training=training.images.numpy()[sample],
        validation=validation.images.numpy()[held_out],
        labels=validation.labels.numpy()[held_out],
        dataset=checkpoint.dataset_name,  # an artifact must not contain paths
    )


def split_images(verification: VerificationImages, expected: NDArray[np.float32]) -> CalibrationImages:
    """Split images into some to calibrate with, at most a quarter, and the rest to judge by.

    The split is seeded. Equal images, under whatever names, are on the same side.

    Raises:
        PrecisionError: the images are synthetic, or too few.
    """
    images = verification.images
    if verification.synthetic:
        raise PrecisionError(
            "it needs real images to calibrate with and to judge by: give a folder of them with --images"
        )
    groups: dict[bytes, list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(hashlib.sha256(image.tobytes()).digest(), []).append(index)
    if len(groups) < FEWEST_IMAGES:
        raise PrecisionError(
            f"it needs {FEWEST_IMAGES} different images or more to calibrate with and to judge by; "
            f"--images holds {len(groups)}"
        )
    is_large = max(images.shape[2:]) > LARGE_SIDE
    most = TRAINING_COUNT_LARGE if is_large else TRAINING_COUNT
    members = list(groups.values())
    order = np.random.default_rng(_SEED).permutation(len(members))
    count = min(most, len(members) // 4)
    # One of each: a copy changes no range.
    training = sorted(members[group][0] for group in order[:count])
    held_out = sorted(index for group in order[count:] for index in members[group])
    known = verification.labels
    labels = expected.argmax(axis=1) if known is None else known
    return CalibrationImages(
        training=images[training],
        validation=images[held_out],
        labels=labels[held_out].astype(np.int64),
        dataset=verification.origin,
        are_labels_true=known is not None,
    )


def _sample(examples: Examples, count: int) -> NDArray[np.int64]:
    """Return ``count`` positions drawn with a fixed seed, ascending; all if there are fewer."""
    order = np.random.default_rng(_SEED).permutation(len(examples))
    return np.sort(order[:count])
