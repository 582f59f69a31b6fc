"""Chooses the epoch whose weights are kept: the best in validation, or the last as good within chance.

Few validation images say little: of hundreds of epochs the best is the luckiest one, and often of the time
when the learning rate is still high. The one-standard-error rule takes the simplest model within one standard
error of the best (Breiman, Friedman, Olshen and Stone 1984, Classification and Regression Trees, section
3.4.3); here it takes the latest epoch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from foldserve.training.config import TrainConfig


class EpochChoice:
    """Tells after each epoch whether its weights replace those that were kept before."""

    def __init__(self, config: TrainConfig, validation_labels: Tensor) -> None:
        """Choose as ``config`` says, by the figures of images with the classes ``validation_labels`` [N]."""
        self._errors = config.select_within
        counts = validation_labels.bincount()
        self._count = len(validation_labels) * 1.0
        if config.select == "macro-f1":  # the variance of a mean over classes, each of its own images
            present = counts[counts > 0].double()
            self._count = float(len(present) ** 2 / (1 / present).sum())

    def keeps_last(self, figures: Sequence[float]) -> bool:
        """Return whether the last of the epochs' ``figures``, shares of 1, is good enough to be kept."""
        return figures[-1] >= wilson_lower_bound(max(figures), self._count, self._errors)


def wilson_lower_bound(share: float, count: float, errors: float) -> float:
    """Return the lower end of the interval of ``errors`` standard errors around a ``share`` of ``count``.

    It is Wilson's (1927), which is right for shares near 1, too. For 0 errors it is the share itself.
    """
    if errors == 0:
        return share
    square = errors**2 / count
    half = errors * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return (share + square / 2 - half) / (1 + square)
