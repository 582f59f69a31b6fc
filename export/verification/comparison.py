"""Compares the logits of file and network on one set of images at one batch size.

Where the network can be computed in float64, that judges, image by image; else the network's float32 logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from foldserve.export.errors import ParityError
from foldserve.export.verification.rounding import Rounding, image_errors, typical_error
from foldserve.export.verification.tolerances import reference_tolerance

if TYPE_CHECKING:
    from numpy.typing import NDArray

# With fewer images, their largest errors say little about how far rounding reaches.
ENOUGH = 8


@dataclass(frozen=True)
class Comparison:
    """Largest differences of logits on one set of images at one batch size.

    The fields about float64 are None if there is no float64 reference. It judges if there is one, image by
    image; then ``tolerance`` is what that leaves for the difference between network and file. The typical
    error is compared on all images of a set at once.
    """

    provider: str
    images: str
    batch_size: int
    max_abs_err: float
    tolerance: float
    max_abs_err_float64: float | None
    pytorch_max_abs_err_float64: float | None
    tolerance_float64: float | None
    typical_err_float64: float | None = None
    typical_tolerance_float64: float | None = None


@dataclass(frozen=True)
class JudgedSet:
    """The float64 logits of a set of images, PyTorch's rounding, and each image's tolerance."""

    exact: NDArray[np.float64]
    rounding: Rounding
    tolerances: NDArray[np.float64]


def compare(
    provider: str,
    name: str,
    logits: NDArray[np.float32],
    expected: NDArray[np.float32],
    judged: JudgedSet | None,
    *,
    batch_size: int | None = None,
) -> Comparison:
    """Compare the file's ``logits`` of a set's first images.

    Args:
        provider: the execution provider's name.
        name: what the images are, for messages.
        logits: float32 [n, K].
        expected: the network's logits of the whole set, float32 [N, K].
        judged: the float64 reference of the whole set; None if there is none.
        batch_size: how many images were run at once; n by default.

    Raises:
        ParityError: an error is above its tolerance, or a logit is not finite.
    """
    count = len(logits)
    plain = Comparison(
        provider=provider,
        images=name,
        batch_size=batch_size or count,
        max_abs_err=max_abs_err(logits, expected[:count]),
        tolerance=reference_tolerance(expected[:count]),
        max_abs_err_float64=None,
        pytorch_max_abs_err_float64=None,
        tolerance_float64=None,
    )
    if judged is None:
        if not plain.max_abs_err <= plain.tolerance:
            raise ParityError(
                f"{describe(plain)} the file's logits differ by up to {plain.max_abs_err:.3g} "
                f"from the network's (allowed: {plain.tolerance:.3g}); nothing was published"
            )
        return plain
    exact, tolerances, own = judged.exact[:count], judged.tolerances[:count], judged.rounding.errors[:count]
    errors = image_errors(logits, exact)
    comparison = replace(
        plain,
        tolerance=float((own + tolerances).max()),
        max_abs_err_float64=float(errors.max()),
        pytorch_max_abs_err_float64=float(own.max()),
        tolerance_float64=float(tolerances.max()),
    )
    wrong = ~(errors <= tolerances)  # written so that NaN is wrong
    if wrong.any():
        worst = int(np.argmax(np.where(wrong, errors / tolerances, 0.0)))
        raise ParityError(
            f"{describe(comparison)} the file's logits differ by up to {comparison.max_abs_err:.3g} from the "
            f"network's; they are off by up to {errors[worst]:.3g} from the float64 reference, those of "
            f"the network in float32 by {own[worst]:.3g} (allowed: {tolerances[worst]:.3g}); nothing was "
            "published"
        )
    if count < len(expected) or count < ENOUGH:
        return comparison
    typical, allowed = typical_error(logits, exact), judged.rounding.typical_tolerance
    if not typical <= allowed:
        raise ParityError(
            f"{describe(comparison)} the file's logits are typically off by {typical:.3g} "
            f"from the float64 reference, those of the network in float32 by {judged.rounding.typical:.3g} "
            f"(allowed: {allowed:.3g}); nothing was published"
        )
    return replace(comparison, typical_err_float64=typical, typical_tolerance_float64=allowed)


def describe(comparison: Comparison) -> str:
    """Say on which images and where, for messages."""
    return f"on {comparison.images} images, batch {comparison.batch_size}, under {comparison.provider}"


def max_abs_err(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest difference.

    Raises:
        ParityError: they differ in shape.
    """
    check_shape(actual, expected)
    return float(np.abs(actual.astype(np.float64) - expected).max())


def check_shape(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    """Compare the shapes of two arrays of logits.

    Raises:
        ParityError: they differ.
    """
    if actual.shape != expected.shape:
        raise ParityError(f"the file outputs {list(actual.shape)}, the network {list(expected.shape)}")
