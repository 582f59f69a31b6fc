"""Defines every tolerance between two computations of the same logits, with its reason.

All are absolute differences of logits. Rounding errors grow with the values summed, so each tolerance is the
larger of a floor and a fraction of the largest logit; a unit in the last place of fp32 is 1.2e-7 of a value.

reference: folded ONNX against unfolded PyTorch, both fp32; floor 1e-4, fraction 5e-6.
    1e-4 is what the artifact promises for logits of LeNet's size (up to 20). Folding and another order of
    summing cost about 5e-6 on a trained LeNet; a wrong fold costs 1e-2 and more.

runtime: one file on two devices or runtimes, fp32; floor 1e-5, fraction 2e-6, or 4 roundings.
    No folding is involved, so it is tight enough to detect one damaged weight. Another correct runtime should
    round about as much as the two that were measured (PyTorch and ONNX Runtime on the CPU, against float64),
    and two such errors may add up; twice that is allowed, so that a GPU does not refuse an ill-conditioned
    network.

float64: ONNX against float64, twice the error of PyTorch's own fp32 plus a fraction of 1e-6.
    On few images PyTorch's error may be close to 0; 1e-6 is 8 units in the last place of the largest logit.

fp16: file in fp16 against unfolded PyTorch; floor 1e-3, fraction 2e-3.
    Each weight and each value between two layers is rounded by up to 2^-11 = 4.9e-4 of itself. Over the
    layers such errors add up like a random walk; four in a row are allowed. Measured on a trained LeNet:
    4.2e-4 of the largest logit.

int8: file in int8 against unfolded PyTorch; twice the largest difference on the validation images and the
    training images that it was calibrated on, and at most 0.1 of the largest logit.
    The error of rounding to bytes depends on the network, so it is measured. Test images, and those that a
    server will see, are similar but not the same, and their errors may be larger. A file whose error is a
    tenth of its largest logit is no longer the network that was trained.

runtime, lower precisions: twice the difference between ONNX Runtime's integer or fp16 kernels and the same
    file computed node by node in float, or on another device here; for fp16 at least two units in the last
    place of the largest logit; floor 1e-5.
    Another correct runtime may round a value to the neighbouring byte or float16. So do the two computations
    here, over all golden images. On a CPU, though, both round float16 alike: only a GPU sums in another
    order, and its logits are then neighbouring float16 values. Measured on an H100: 5.9e-3 at logits near 12,
    where a unit is 7.8e-3.
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

FP16_FLOOR = 1e-3
FP16_FRACTION = 2e-3

INT8_MARGIN = 2.0
INT8_MOST = 0.1

LOWER_RUNTIME_ROUNDINGS = 2.0
# A unit in the last place of a float16, relative to the value: its significand has 11 bits.
FP16_UNIT = 2.0**-10

FLOAT64_FACTOR = 2.0
FLOAT64_FRACTION = 1e-6


def reference_tolerance(logits: NDArray[Any]) -> float:
    """Return the tolerance between the file's logits and ``logits`` of the unfolded PyTorch network."""
    return max(REFERENCE_FLOOR, REFERENCE_FRACTION * _largest(logits))


def runtime_tolerance(logits: NDArray[Any], rounding: float) -> float:
    """Return the tolerance between the file's logits on two devices or runtimes.

    ``rounding`` is the largest error against float64 that two float32 runtimes had on this network.
    """
    return max(RUNTIME_FLOOR, RUNTIME_FRACTION * _largest(logits), RUNTIME_ROUNDINGS * rounding)


def float64_tolerance(exact: NDArray[np.float64], pytorch_error: float) -> float:
    """Return the tolerance against float64 logits, if the error of PyTorch's float32 is ``pytorch_error``."""
    return FLOAT64_FACTOR * pytorch_error + FLOAT64_FRACTION * max(1.0, _largest(exact))


def fp16_tolerance(logits: NDArray[Any]) -> float:
    """Return the tolerance between an fp16 file's logits and ``logits`` of the unfolded PyTorch network."""
    return max(FP16_FLOOR, FP16_FRACTION * _largest(logits))


def int8_tolerance(logits: NDArray[Any], measured: float) -> float:
    """Return the tolerance between an int8 file's logits and ``logits`` of the unfolded PyTorch network.

    ``measured`` is the largest difference on validation and calibration images.
    """
    return min(INT8_MARGIN * measured, INT8_MOST * _largest(logits))


def reduced_runtime_tolerance(logits: NDArray[Any], rounding: float, unit: float) -> float:
    """Return the tolerance between a lower precision's logits on two devices or runtimes.

    Args:
        logits: the file's own.
        rounding: the largest difference between two computations of the file here.
        unit: a unit in the last place of the logits' number format, relative to a value: FP16_UNIT for fp16,
            0 for int8, whose logits are float32.
    """
    return max(RUNTIME_FLOOR, LOWER_RUNTIME_ROUNDINGS * max(rounding, unit * _largest(logits)))


def _largest(logits: NDArray[Any]) -> float:
    return float(np.abs(logits).max(initial=0.0))
