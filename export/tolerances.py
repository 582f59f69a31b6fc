"""How far two ways of computing the same logits may lie apart: every tolerance, with its reason.

All are absolute differences of logits. Rounding grows with the size of what is summed, so each is the larger
of a floor and a fraction of the largest logit; a unit in the last place of fp32 is 1.2e-7 of a value.

reference: folded ONNX against unfolded PyTorch, both fp32; floor 1e-4, fraction 5e-6.
    The contract's 1e-4 for logits of LeNet's size (up to 20). Folding and another order of summing cost some
    5e-6 on a trained LeNet; a wrong fold costs 1e-2 and more.

runtime: one file on two devices or runtimes, fp32; floor 1e-5, fraction 2e-6, or 4 roundings.
    No folding in between: tight enough to see one damaged weight. Another correct runtime rounds about as
    badly as the two that were measured (PyTorch and ONNX Runtime on the CPU, against float64), and two such
    errors may add up; twice that is left as room, so that an ill-conditioned network is not refused on a GPU.

referee: ONNX against float64, beyond twice what PyTorch's own fp32 is off by; fraction 1e-6.
    On few images PyTorch may be off by next to nothing; 1e-6 is 8 units in the last place of the largest
    logit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

REFERENCE_FLOOR = 1e-4
REFERENCE_FRACTION = 5e-6

RUNTIME_FLOOR = 1e-5
RUNTIME_FRACTION = 2e-6
RUNTIME_ROUNDINGS = 4.0

REFEREE_FACTOR = 2.0
REFEREE_FRACTION = 1e-6


def reference_tolerance(logits: NDArray[Any]) -> float:
    """Return the tolerance between the file's logits and ``logits`` of the unfolded PyTorch network."""
    return max(REFERENCE_FLOOR, REFERENCE_FRACTION * _largest(logits))


def runtime_tolerance(logits: NDArray[Any], rounding: float) -> float:
    """Return the tolerance between the file's logits on two devices or runtimes.

    ``rounding`` is the largest distance from float64 that two float32 runtimes were seen to have on this
    network.
    """
    return max(RUNTIME_FLOOR, RUNTIME_FRACTION * _largest(logits), RUNTIME_ROUNDINGS * rounding)


def referee_tolerance(exact: NDArray[np.float64], pytorch_error: float) -> float:
    """Return the tolerance against float64 logits, where PyTorch's float32 is off by ``pytorch_error``."""
    return REFEREE_FACTOR * pytorch_error + REFEREE_FRACTION * max(1.0, _largest(exact))


def _largest(logits: NDArray[Any]) -> float:
    return float(np.abs(logits).max(initial=0.0))
