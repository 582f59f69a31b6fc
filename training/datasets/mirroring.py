"""Tells whether mirrored images still look like their class, as clothes do and letters do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from foldserve.training.datasets.dataset import Examples

_MOST_IMAGES = 2000
_SIDE = 12
# How much worse the nearest neighbour may tell the class of mirrored images before mirroring is left out.
_MOST_LOSS = 0.15
_SEED = 20170825


@dataclass(frozen=True)
class Mirroring:
    """How often the nearest other image is of the same class: for images as they are, and mirrored; 0..1."""

    accuracy: float
    mirrored_accuracy: float

    @property
    def keeps_class(self) -> bool:
        """Whether mirrored images are told apart nearly as well as the images themselves."""
        return self.mirrored_accuracy >= self.accuracy - _MOST_LOSS


def judge_mirroring(training: Examples) -> Mirroring:
    """Return how well mirrored images are recognised by their nearest neighbour on 12x12 pixels."""
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(_SEED))[:_MOST_IMAGES]
    images, labels = training.images[order], training.labels[order]
    small = F.adaptive_avg_pool2d(images.float(), _SIDE)
    references = _standardised(small)
    return Mirroring(
        _neighbour_accuracy(references, references, labels),
        _neighbour_accuracy(_standardised(small.flip(-1)), references, labels),
    )


def _standardised(images: Tensor) -> Tensor:
    """Return [N, D] with mean 0 and length 1 each, so that brightness and contrast do not count."""
    values = images.flatten(1)
    return F.normalize(values - values.mean(dim=1, keepdim=True), dim=1)


def _neighbour_accuracy(queries: Tensor, references: Tensor, labels: Tensor) -> float:
    """Return how often the nearest reference, other than the image itself, has the label of the query."""
    likeness = queries @ references.T
    likeness.fill_diagonal_(-2.0)
    return (labels[likeness.argmax(dim=1)] == labels).double().mean().item()
