"""Says how much can be told from the images by which a precision is judged.

A loss of accuracy that is measured on a few images is uncertain: its 95 % interval is that of a difference of
paired proportions (Agresti and Min 2005, "Simple improved confidence intervals for comparing matched
proportions"), in which only images count that one file gets right and the other wrong.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_Z = 1.959964  # of a 95 % interval


def drop_interval(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the 95 % interval of the accuracy that is lost, in percentage points.

    Args:
        before: which images the fp32 file gets right, [N].
        after: which the lower precision's file gets right, [N].
    """
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    count = len(before) + 2  # half an image is added to each of the four outcomes
    difference = (lost - gained) / count
    half = _Z * math.sqrt(lost + gained + 1 - (lost - gained) ** 2 / count) / count
    return 100 * max(-1.0, difference - half), 100 * min(1.0, difference + half)


def interval_warning(image_count: int, interval: tuple[float, float], most_drop: float) -> str:
    """Say that ``image_count`` images are too few to tell a loss of ``most_drop`` points; else ""."""
    low, high = interval
    if not low <= most_drop < high:
        return ""
    return (
        f"warning: {image_count:,} images are too few to tell a loss of {most_drop:g} points: between "
        f"{low:.2f} and {high:.2f} points are lost (95 % interval); give more images"
    )


def network_warnings(
    predictions: NDArray[np.int64], classes: NDArray[np.int64], labels: Sequence[str], *, are_true: bool
) -> tuple[str, ...]:
    """Warn of a network from whose predictions a loss cannot be seen: one answer for all, or chance.

    Args:
        predictions: of the fp32 file, [N].
        classes: of the images, [N].
        labels: names of the classes.
        are_true: whether ``classes`` are known, rather than the network's own answers.
    """
    if len(predictions) > 1 and (predictions == predictions[0]).all():
        return (
            f"warning: the network answers {labels[int(predictions[0])]} for all {len(predictions):,} images "
            "that judge: a loss of accuracy cannot show; are --mean, --std and the images those it was "
            "trained with?",
        )
    if not are_true:
        return ()
    right = float((predictions == classes).mean())
    most_common = float(np.bincount(classes).max()) / len(classes)
    chance = max(most_common, 1 / max(2, len(labels)))
    if _lower_bound(right, len(classes)) > chance or (right == 1.0 and most_common < 1.0):
        return ()
    return (
        f"warning: the network is right on {right:.2%} of the {len(classes):,} images that judge, which is "
        f"not clearly more than chance ({chance:.2%}): a loss of accuracy cannot show; are --mean, --std and "
        "the order of --labels those it was trained with?",
    )


def _lower_bound(share: float, count: int) -> float:
    """Return the lower end of Wilson's 95 % interval of a ``share`` of ``count``."""
    square = _Z * _Z
    centre = share + square / (2 * count)
    spread = _Z * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return (centre - spread) / (1 + square / count)
