"""Measures how far probabilities are from the share of right answers.

Expected calibration error: the images are sorted into 15 equal bins of their highest probability; the error
is the mean over images of |share of right answers - mean probability| of their bin (Guo et al. 2017, "On
Calibration of Modern Neural Networks", arXiv:1706.04599).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BIN_COUNT = 15


class ReliabilityBins:
    """Adds up images by their highest probability.

    Attributes:
        counts, right: number of images in each bin, and of those that were right, int64 [15].
        confidence_sums: sum of their highest probabilities, float64 [15].
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BIN_COUNT, np.int64)
        self.right = np.zeros(BIN_COUNT, np.int64)
        self.confidence_sums = np.zeros(BIN_COUNT, np.float64)

    def add(self, confidences: NDArray[np.floating[Any]], is_right: NDArray[np.bool_]) -> None:
        """Add images by their highest probability [N] and whether that answer was right [N]."""
        places = np.minimum((confidences.astype(np.float64) * BIN_COUNT).astype(np.int64), BIN_COUNT - 1)
        self.counts += np.bincount(places, minlength=BIN_COUNT)
        self.right += np.bincount(places[is_right], minlength=BIN_COUNT)
        self.confidence_sums += np.bincount(places, weights=confidences, minlength=BIN_COUNT)

    @property
    def error(self) -> float:
        """The expected calibration error; NaN without images."""
        total = int(self.counts.sum())
        return float(np.abs(self.right - self.confidence_sums).sum() / total) if total else float("nan")

    def to_json(self) -> list[dict[str, float | int]]:
        """Return the bins that hold images: range, count, mean probability and share of right answers."""
        return [
            {
                "from": place / BIN_COUNT,
                "to": (place + 1) / BIN_COUNT,
                "image_count": int(self.counts[place]),
                "mean_probability": float(self.confidence_sums[place] / self.counts[place]),
                "accuracy": float(self.right[place] / self.counts[place]),
            }
            for place in range(BIN_COUNT)
            if self.counts[place]
        ]
