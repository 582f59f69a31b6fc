"""Defines every tolerance between two computations of the same logits, with its reason.

All are absolute differences of logits. Rounding errors grow with the values summed, so each tolerance is the
larger of a floor and a fraction of the largest logit; a unit in the last place of fp32 is 1.2e-7 of a value.

float64: folded ONNX against the unfolded network in float64, where that can be computed. PyTorch's own
    float32 says what float32 is worth here: an image's largest error may be 4 times the larger of PyTorch's
    for this image and of PyTorch's typical one on all images compared; the typical error, 3 times PyTorch's.
    Two correct computations draw such errors from one distribution. Measured on 15 networks, the largest
    error of an image was up to 2.9 times that, the typical one 1.5 times (see `rounding`).
    Of every eight images one may be off by 64 times as much: where a layer divides by the standard deviation
    of a nearly flat image, ONNX Runtime was off by up to 29 times as much as PyTorch, which sums otherwise.
    A floor of 4 units in the last place of the largest logit is added, as PyTorch's error may be 0 by chance;
    a fourth of it for the typical error, an average over logits. If an image's logits are all equal, as where
    weights are constants, so are their errors, and the typical error has the tolerance of a single one.
    It is never more than the bound below.

reference: folded ONNX against unfolded PyTorch, both fp32, if there is no float64; floor 1e-4, fraction 5e-6.
    1e-4 is what the artifact promises for logits of LeNet's size (up to 20). Folding and another order of
    summing cost about 5e-6 on a trained LeNet; a wrong fold costs 1e-2 and more.

agreement: the same, of all verification images, of which only some are computed in float64: 4 times the
    largest error measured against float64, and its floor. Images that differ by more are computed in float64.

golden: the reference tolerance, or 4 times the largest error against float64 if that is more; at most the
    bound. Golden pairs are replayed on other machines and GPUs, so it is not narrower than it was.

bound: 4e-4 of the largest logit, or 1e-4. A fifth of what fp16 is allowed: a network whose own float32 is
    worth less is not published. A server refuses golden pairs in fp32 with a wider tolerance.

runtime: one file on two devices or runtimes, fp32; floor 1e-5, fraction 2e-6, or 4 roundings.
    No folding is involved, so it is tight enough to detect one damaged weight. Another correct runtime should
    round about as much as the two that were measured (PyTorch and ONNX Runtime on the CPU, against float64),
    and two such errors may add up; twice that is allowed, so that a GPU does not refuse an ill-conditioned
    network.

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

from foldserve.artifact.golden_limits import max_tolerance

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

IMAGE_FACTOR = 4.0
TYPICAL_FACTOR = 3.0
FEW_FACTOR = 64.0
FEW_SHARE = 1 / 8
# Units in the last place of a float32, relative to the value: its significand has 24 bits.
FLOOR_UNITS = 4
FP32_UNIT = 2.0**-23


def reference_tolerance(logits: NDArray[Any]) -> float:
    """Return the tolerance between the file's logits and ``logits`` of the unfolded PyTorch network."""
    return max(REFERENCE_FLOOR, REFERENCE_FRACTION * _largest(logits))


def runtime_tolerance(logits: NDArray[Any], rounding: float) -> float:
    """Return the tolerance between the file's logits on two devices or runtimes.

    ``rounding`` is the largest error against float64 that two float32 runtimes had on this network.
    """
    return max(RUNTIME_FLOOR, RUNTIME_FRACTION * _largest(logits), RUNTIME_ROUNDINGS * rounding)


def float64_tolerance(exact: NDArray[Any], pytorch_error: float) -> float:
    """Return the error of an image against float64 logits, if PyTorch's own is ``pytorch_error`` there."""
    return IMAGE_FACTOR * pytorch_error + rounding_floor(exact)


def rounding_floor(exact: NDArray[Any]) -> float:
    """Return the error against float64 logits ``exact`` that is allowed whatever PyTorch's error is."""
    return FLOOR_UNITS * FP32_UNIT * _largest(exact)


def reference_bound(logits: NDArray[np.float32]) -> float:
    """Return the largest tolerance of an fp32 file for the network's ``logits``, however they round."""
    return max_tolerance(logits, "fp32")


def agreement_tolerance(logits: NDArray[np.float32], rounding: float) -> float:
    """Return the difference between the file's and the network's ``logits`` that rounding explains.

    ``rounding`` is the largest error that file or network had against float64.
    """
    return min(float64_tolerance(logits, rounding), reference_bound(logits))


def credible_rounding(logits: NDArray[np.float32]) -> float:
    """Return the largest difference between fp32 ``logits`` and float64 that rounding may explain.

    A larger one means that another function was computed: a network that rounds more is near the bound.
    """
    return max(reference_tolerance(logits), reference_bound(logits) / (2 * IMAGE_FACTOR))


def golden_tolerance(logits: NDArray[np.float32], rounding: float) -> float:
    """Return the tolerance of golden pairs with the network's ``logits``; ``rounding`` is as above."""
    return max(reference_tolerance(logits), agreement_tolerance(logits, rounding))


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
