"""Tells logits from probabilities by their values, before anything is published.

`foldserve.export.graph.serialize` appends a softmax to every network. If the network outputs probabilities
already, callers would get flattened ones: with 10 classes, certainty would become 0.23. These are refused:

    nothing is negative, and every row adds up to 1   a softmax, however it was computed; so is one of another
                                                      sum, such as 100, if all rows have it
    all between 0 and 1, and some far apart           a sigmoid per class, however it was computed
    one number per image                              one logit, or the probability of one of two classes

The logits of a trained network hardly ever look like that; if they do, the user can pass ``--as-logits``.
Values between 0 and 1 that are close together may be logits of small weights: they cause a warning. A sigmoid
or softmax that is visible in the graph is found there (`foldserve.export.graph.endings`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from foldserve.artifact.model_outputs import softmax
from foldserve.export.errors import SourceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

AS_LOGITS = "--as-logits treats its output as logits"
TAKEN_AS_LOGITS = "its output is treated as logits (--as-logits)"
BINARY = (
    "its one output is taken for the second of the two labels: the logits are [0, logit], whose softmax is "
    "[1 - sigmoid(logit), sigmoid(logit)]"
)
_WHAT_TO_DO = (
    "and another softmax would change them. Let the network's factory return a network without that last "
    f"step, or name the tensor of an .onnx file that holds the logits with --output; {AS_LOGITS}"
)

# Tolerance of a sum of probabilities: fp16 rounds each of them by 1 in 2,048.
_SUM = 1e-3
# Shares of another sum move this many times as far from image to image as their sum, which is only rounded.
_MOVED = 10
# Distance between the smallest and the largest output. Logits of small weights may lie between 0 and 1 by
# chance, but then close together; a sigmoid per class that is worth serving is sure of some images.
_BOTH_ENDS = 0.5
# Absolute and relative tolerance, wide enough for fp16: a softmax over another axis is far off.
_ALMOST, _ALMOST_OF = 1e-3, 1e-2


def check_logits(outputs: NDArray[Any]) -> str:
    """Check that ``outputs`` [N, K], finite, for different images, are logits; return a warning or "".

    Raises:
        SourceError: they are probabilities, or K is 1.
    """
    count, class_count = outputs.shape
    check_class_count(class_count)
    low, high = float(outputs.min()), float(outputs.max())
    if low < 0:
        return ""
    sums = outputs.astype(np.float64).sum(axis=1)
    if high > 1 + _SUM:
        # Images of noise are alike to many networks: all of their logits hardly differ, nor do the sums.
        moved, spread = float(np.ptp(outputs, axis=0).max()), float(np.ptp(sums))
        if moved > max(_MOVED * spread, _SUM * high) and spread <= _SUM * float(sums.max()):
            raise _refusal(
                f"the network's outputs for {count} images are not negative and add up to the same number "
                f"for each, {sums.max():.4g}: they are probabilities of another scale already"
            )
        return ""
    if np.abs(sums - 1).max() <= _SUM:
        raise _refusal(
            f"the network's outputs for {count} images are not negative and add up to 1 for each: they are "
            "probabilities already, as after a softmax"
        )
    between = f"the network's outputs for {count} images all lie between 0 and 1 ({low:.3g} to {high:.3g})"
    if high - low >= _BOTH_ENDS:
        raise _refusal(f"{between}: they are probabilities already, as after a sigmoid")
    return f"warning: {between}; if they are probabilities, export a network that outputs logits"


def check_class_count(class_count: int) -> None:
    """Refuse a network with a single output.

    Raises:
        SourceError: ``class_count`` is 1.
    """
    if class_count == 1:
        raise SourceError(
            "the network outputs one number per image, whose softmax is always 1; expected one logit for "
            "each of two classes or more. For yes or no name both in --labels: then a single logit, or its "
            f"sigmoid, counts for the second, and the logits are [0, logit]; {AS_LOGITS}"
        )


def no_logits_text(end: str) -> str:
    """Return the error message for a network that ends in ``end``, such as a sigmoid."""
    return f"the network ends in a {end}: its outputs are not logits, {_WHAT_TO_DO}"


def _refusal(what: str) -> SourceError:
    return SourceError(f"{what}, {_WHAT_TO_DO}")


def is_softmax_of(given: NDArray[Any], logits: NDArray[Any]) -> bool:
    """Tell whether ``given`` is the softmax of ``logits`` [N, K], or its logarithm."""
    if given.shape != logits.shape or given.ndim != 2:
        return False
    expected = softmax(logits)
    probabilities = np.exp(given.astype(np.float64)) if given.min(initial=0.0) < 0 else given
    return bool((np.abs(probabilities - expected) <= _ALMOST + _ALMOST_OF * expected).all())


def is_sigmoid_of(given: NDArray[Any], logits: NDArray[Any]) -> bool:
    """Tell whether ``given`` is the sigmoid of ``logits`` of the same shape, or its logarithm."""
    if given.shape != logits.shape:
        return False
    expected = (1 + np.tanh(logits.astype(np.float64) / 2)) / 2  # the sigmoid, without overflow
    probabilities = np.exp(given.astype(np.float64)) if given.min(initial=0.0) < 0 else given
    return bool((np.abs(probabilities - expected) <= _ALMOST).all())
