"""Checks a model's outputs: one row per image, and probabilities that are the softmax of the logits.

    probability[n, k] = exp(logit[n, k] / T) / sum over classes j of exp(logit[n, j] / T)

with the temperature T of the model's metadata, 1 without calibration (`foldserve.export.calibrate`).

Callers get both outputs, so both are verified.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foldserve.artifact.format import LOGITS, PROBABILITIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# ONNX Runtime's float32 softmax differs from float64 by at most 5e-6 of the probability, measured over 2 to
# 21,841 classes and logits up to 1,000. The floor is for probabilities too small for float32.
_FRACTION = 5e-5
_FLOOR = 1e-7


def shape_fault(outputs: Sequence[NDArray[np.float32]], row_count: int, class_count: int) -> str:
    """Return a message if an output is not float32 [``row_count``, ``class_count``], else ""."""
    shape = (row_count, class_count)
    for name, output in zip((LOGITS, PROBABILITIES), outputs, strict=True):
        if output.shape != shape or output.dtype != np.float32:
            return (
                f"the model's {name} are {output.dtype} {list(output.shape)} for {row_count} images, "
                f"expected float32 {list(shape)}"
            )
    return ""


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the probabilities [N, K] of ``logits`` [N, K], in float64; NaN for rows that are not finite."""
    with np.errstate(all="ignore"):
        powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def softmax_errors(
    logits: NDArray[np.float32], probabilities: NDArray[np.float32], temperature: float = 1.0
) -> tuple[NDArray[np.bool_], float]:
    """Return a mask [N] of rows that are not softmax(logits / temperature), and the largest error.

    ``logits`` and ``probabilities`` are [N, K]. A row with NaN or infinity in either is wrong. The
    division is done in float32, as the graph does it, so that its rounding needs no tolerance.
    """
    expected = softmax(logits if temperature == 1.0 else logits / np.float32(temperature))
    with np.errstate(all="ignore"):
        differences = np.abs(probabilities.astype(np.float64) - expected)
        within = differences <= _FRACTION * expected + _FLOOR  # written so that NaN is wrong
    return np.asarray(~within.all(axis=1)), float(differences.max(initial=0.0))
