"""Holds the outputs for images, and turns them into labels by the server's rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from foldserve.tables.items import Item

# The answer where the likeliest label's probability is below the confidence asked for.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Predictions:
    """The outputs of a model for N images, bit for bit those of a server.

    Attributes:
        names: the model's K labels.
        logits, probabilities: float32 [N, K].
    """

    names: tuple[str, ...]
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]

    def __len__(self) -> int:
        """Return N."""
        return len(self.probabilities)

    def ranked(self, top_k: int = 1) -> NDArray[np.int64]:
        """Return the classes of the highest probabilities [N, top_k], highest first, ties in index order."""
        order: NDArray[np.int64] = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :top_k]
        return order

    def confidences(self) -> NDArray[np.float32]:
        """Return the highest probability of each image [N]."""
        highest: NDArray[np.float32] = self.probabilities.max(axis=1)
        return highest

    def labels(self, min_confidence: float = 0.0) -> list[str]:
        """Return the likeliest label of each image; "unknown" if it is below ``min_confidence``."""
        unknown = is_unknown(self.confidences(), min_confidence)
        return [
            UNKNOWN if below else self.names[best]
            for best, below in zip(self.ranked()[:, 0].tolist(), unknown.tolist(), strict=True)
        ]


def is_unknown(confidences: NDArray[np.float32], min_confidence: float) -> NDArray[np.bool_]:
    """Tell which of the ``confidences`` are too low; compared in float32, as the server does."""
    return np.asarray(confidences < np.float32(min_confidence))


@dataclass(frozen=True)
class Answered:
    """Some items of a source with their outputs.

    Attributes:
        items: N items, in the source's order.
        errors: why an item has no outputs; "" if it has.
        rows: the place of each item in the arrays; -1 if it has no outputs.
        images: the prepared pixels uint8 [M, C, H, W] of those that have outputs.
        predictions: the outputs of each model, for M images.
    """

    items: Sequence[Item]
    errors: Sequence[str]
    rows: Sequence[int]
    images: NDArray[np.uint8]
    predictions: tuple[Predictions, ...]
