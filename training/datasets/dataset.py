"""Holds a data set in memory, and splits its training images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from foldserve.training.datasets.splitting import grouped, stratified
from foldserve.training.errors import DatasetError

if TYPE_CHECKING:
    from torch import Tensor

    from foldserve.imaging import ImageSpec

# All runs of a data set use the same split, whatever their seed, so that their figures compare.
SPLIT_SEED = 20170825
# Enough to tell the best epoch by more than chance: at 93 % accuracy, the standard deviation is 0.36 %.
MOST_VALIDATION_IMAGES = 5000


@dataclass(frozen=True)
class Examples:
    """Images uint8 [N, C, H, W] with their class indices int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Examples:
        """Return the examples on ``device``."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def to_device_if_it_fits(self, device: torch.device) -> Examples:
        """Return the examples on ``device``, or unchanged if they would fill half of its free memory."""
        if device.type == "cpu":
            return self
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return self.to(device) if self.images.nbytes < free_bytes // 2 else self


@dataclass(frozen=True)
class Dataset:
    """Images uint8 [N, C, H, W] of the size in ``image``, labels int64 [N] as indices into ``labels``.

    ``validation`` is None if the data set has no validation images of its own. ``flip_keeps_class`` is
    whether a mirrored image still shows its class, as clothes do and digits do not. ``is_on_black`` is
    whether images show things on black, which goes on beyond their borders. ``fingerprint`` is a hash
    of the images and their classes, empty for a data set that never changes. ``is_folder`` is whether it is
    a folder of images, which is split by class; others keep the split that their figures are of.
    ``train_groups`` int64 [N] are the groups of training images that a split must not part, if there are any.
    ``test_names`` are the paths of the test images within the data set; empty if they are no files.
    """

    name: str
    labels: tuple[str, ...]
    image: ImageSpec
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    validation: Examples | None = None
    flip_keeps_class: bool = True
    fingerprint: str = ""
    is_folder: bool = False
    train_groups: Tensor | None = None
    is_on_black: bool = False
    test_names: tuple[str, ...] = ()

    @property
    def short_name(self) -> str:
        """The name; of a folder or file without the folders above it."""
        return Path(self.name).name or self.name


def split_train(
    dataset: Dataset, validation_count: int | None = None, seed: int = SPLIT_SEED
) -> tuple[Examples, Examples]:
    """Split the training images into (training, validation), with ``validation_count`` drawn by ``seed``.

    The default count is a tenth, at most `MOST_VALIDATION_IMAGES`; of a folder at least one of each class, up
    to a fifth. Each class keeps an image for training. Of a folder, each class gives its share, and with
    groups about that, in whole groups. A data set with validation images of its own is not split, and must
    not be given a count.

    Raises:
        DatasetError: a part or a class would be left without images, or a count was given for a data set with
            validation images.
    """
    if dataset.validation is not None:
        if validation_count is not None:
            raise DatasetError(
                f"--validation-count is {validation_count}, but {dataset.name} brings its own validation "
                "images; leave it out"
            )
        return Examples(dataset.train_images, dataset.train_labels), dataset.validation
    count = len(dataset.train_images)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    movable = order[~_last_of_each_class(dataset.train_labels[order])]
    if validation_count is None:
        validation_count = _usual_count(dataset, count)
        if validation_count == 0:
            raise DatasetError(
                f"{dataset.name} has {count} training images, too few to hold out a tenth for validation; "
                f"expected 10 or more: add images{', or give --validation-count 1' if len(movable) else ''}"
            )
    if not 1 <= validation_count <= len(movable):
        raise DatasetError(
            f"{validation_count} validation images cannot be split from the {count} training images of "
            f"{dataset.name} so that each class keeps one; expected --validation-count 1 to {len(movable)}"
            if len(movable)
            else f"{dataset.name} has a single training image per class, which leaves none for validation; "
            "add images"
        )
    if dataset.train_groups is not None:
        share = validation_count / count
        is_validation = grouped(dataset.train_labels, dataset.train_groups, share, seed)
        if not bool(is_validation.any()):
            raise DatasetError(
                f"--group-by makes groups too large or too few to hold out {validation_count} of {count} "
                f"images of {dataset.name} for validation; expected smaller groups, or a val folder"
            )
    elif dataset.is_folder:
        is_validation = stratified(dataset.train_labels, validation_count, seed)
    else:
        is_validation = torch.zeros(count, dtype=torch.bool)
        is_validation[movable[:validation_count]] = True
    return (
        Examples(dataset.train_images[~is_validation], dataset.train_labels[~is_validation]),
        Examples(dataset.train_images[is_validation], dataset.train_labels[is_validation]),
    )


def _usual_count(dataset: Dataset, count: int) -> int:
    """Return how many of ``count`` training images are held out for validation."""
    tenth = min(count // 10, MOST_VALIDATION_IMAGES)
    if not dataset.is_folder or tenth == 0:
        return tenth
    divisible = int((torch.bincount(dataset.train_labels) > 1).sum())
    return max(tenth, min(divisible, count // 5))


def _last_of_each_class(labels: Tensor) -> Tensor:
    """Return bool [N]: whether a label is the last one of its class in ``labels``."""
    last = torch.full((int(labels.max()) + 1,), -1)
    last.scatter_reduce_(0, labels, torch.arange(len(labels)), "amax")
    return last[labels] == torch.arange(len(labels))


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of uint8 images [N, C, H, W], on pixels scaled to 0..1.

    They are computed from counts of values, and rounded to 6 digits: the same on every machine and in any
    order.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        mean = (counts @ values / counts.sum()).item()
        variance = (counts @ (values - mean) ** 2 / counts.sum()).item()
        means.append(round(mean, 6))
        deviations.append(round(max(variance**0.5, 1 / 255), 6))  # a constant channel has deviation 0
    return tuple(means), tuple(deviations)
