"""Tells whether a network is better than chance, from the figures in a checkpoint."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# Chance alone passes 2 standard deviations above the share of the largest class once in 40 runs.
_DEVIATIONS = 2.0


def chance_warning(metrics: Mapping[str, Any]) -> str | None:
    """Return a warning if the accuracy on the test images is no better than always naming the largest class.

    ``metrics`` are those of a `foldserve.training.checkpoint.Checkpoint`; those of earlier versions, which
    lack the share of the largest class, give None.
    """
    try:
        accuracy, largest = metrics["test_accuracy"], metrics["test_largest_class"]
        count = metrics["test_images"]
    except KeyError:
        return None
    if not 0 < largest <= 1 or count < 1:
        return None
    margin = _DEVIATIONS * math.sqrt(largest * (1 - largest) / count)
    if accuracy > largest + margin:
        return None
    return (
        f"warning: the test accuracy of {accuracy:.1%} is no better than always naming the largest class "
        f"({largest:.1%} of the {count:,} test images): the network has not learnt to tell the classes apart"
    )
