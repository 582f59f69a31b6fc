"""Values of classes -> the top labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def top_indices(values: NDArray[np.float32], top_k: int) -> list[int]:
    """Return the indices of up to ``top_k`` highest of ``values`` [K], the highest first, equals in order."""
    order: list[int] = np.argsort(-values, kind="stable")[:top_k].tolist()
    return order


def top_labels(
    probabilities: NDArray[np.float32], labels: Sequence[str], top_k: int
) -> list[tuple[str, float]]:
    """Return up to ``top_k`` labels with their probabilities, the likeliest first.

    Equals keep the labels' order. ``probabilities`` float32 [K] of one image, ``labels`` its K names.
    """
    return [(labels[index], float(probabilities[index])) for index in top_indices(probabilities, top_k)]
