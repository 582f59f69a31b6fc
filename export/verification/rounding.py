"""Judges a file's float32 by what PyTorch's own float32 is worth for the same images, against float64.

PyTorch's error is one sample of what rounding does to a network on an image, the file's is another. Their
sizes vary from image to image and with the order of summing, but their scale is the same. Measured on 15
networks, seven of torchvision and five that normalise by the image's own statistics among them, the file's
typical error was 0.3 to 1.5 times PyTorch's, and the largest of an image up to 2.9 times the larger of
PyTorch's for that image and of PyTorch's typical one.

A layer that divides by an image's own standard deviation magnifies rounding on an image that is nearly flat,
where runtimes differ by how they sum: ONNX Runtime's error was up to 29 times PyTorch's on such images, and
as large as PyTorch's on all others. So a few images may be off by more if all others are as they should be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from foldserve.export.verification.tolerances import (
    FEW_FACTOR,
    FEW_SHARE,
    IMAGE_FACTOR,
    TYPICAL_FACTOR,
    agreement_tolerance,
    reference_bound,
    rounding_floor,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

# As many images as are compared in float64 at a time elsewhere.
MOST_JUDGED = 32


@dataclass(frozen=True)
class Rounding:
    """PyTorch's float32 errors against float64 on some images.

    Attributes:
        errors: largest error of each image's logits, float64 [N].
        scale: the typical size of those errors: their root mean square, over more images where N is small.
        typical: median over the images of the root mean square over an image's logits.
        floor: see `rounding_floor`.
        bound: see `reference_bound`.
        is_one_number: whether the several logits of each image are all equal: see `typical_tolerance`.
    """

    errors: NDArray[np.float64]
    scale: float
    typical: float
    floor: float
    bound: float
    is_one_number: bool = False

    @classmethod
    def measure(
        cls, expected: NDArray[np.float32], exact: NDArray[np.float64], scale: float = 0.0
    ) -> Rounding:
        """Measure PyTorch's logits ``expected`` [N, K] against ``exact``; ``scale`` is a lower limit."""
        errors = image_errors(expected, exact)
        return cls(
            errors=errors,
            scale=max(scale, root_mean_square(errors)),
            typical=typical_error(expected, exact),
            floor=rounding_floor(exact),
            bound=reference_bound(expected),
            is_one_number=exact.shape[1] > 1
            and bool(np.ptp(exact, axis=1).max(initial=0.0) <= rounding_floor(exact)),
        )

    def tolerances(self, actual: NDArray[np.float32], exact: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the tolerance of each image's largest error [N], given the file's logits of all images.

        Of eight images one may be off by `FEW_FACTOR`, and of 32 four, those with the largest errors.
        """
        return self.few_allowed(image_errors(actual, exact), int(FEW_SHARE * len(self.errors)))

    def few_allowed(self, errors: NDArray[np.float64], few: int) -> NDArray[np.float64]:
        """Return the tolerance of each image's error, if ``few`` images may be off by `FEW_FACTOR`."""
        scales = np.maximum(self.errors, self.scale)
        allowed = IMAGE_FACTOR * scales + self.floor
        excess = errors / allowed
        outliers = np.argsort(-excess, kind="stable")[:few]
        outliers = outliers[excess[outliers] > 1]
        allowed[outliers] = FEW_FACTOR * scales[outliers] + self.floor
        return np.minimum(allowed, self.bound)

    @property
    def typical_tolerance(self) -> float:
        """The tolerance of the file's typical error.

        It is an average over an image's logits. If they are all equal (weights are constants), so are their
        errors: nothing is averaged, and what is allowed for the error of one image is allowed here.
        """
        if self.is_one_number:
            return IMAGE_FACTOR * self.typical + self.floor
        return TYPICAL_FACTOR * self.typical + self.floor / 4


def image_errors(actual: NDArray[Any], exact: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest error of each row [N]."""
    errors: NDArray[np.float64] = np.abs(actual - exact).max(axis=1)
    return errors


def typical_error(actual: NDArray[Any], exact: NDArray[np.float64]) -> float:
    """Return the median over the rows of an error's root mean square: a few images do not change it."""
    return float(np.median(np.sqrt(((actual - exact) ** 2).mean(axis=1))))


def root_mean_square(values: NDArray[np.float64]) -> float:
    """Return the root mean square."""
    return float(np.sqrt((values**2).mean()))


@dataclass(frozen=True)
class Float64Judge:
    """Judges images that file and network were not compared on in float64 before.

    Attributes:
        exact_logits: see `foldserve.export.verification.parity.Reference`.
        rounding: the largest error that file or network had against float64 on other images.
        scale: the network's largest.
    """

    exact_logits: Callable[[NDArray[np.uint8]], NDArray[np.float64] | None]
    rounding: float
    scale: float

    def __str__(self) -> str:
        return f"against float64 the network's own float32 was off by up to {self.scale:.3g}"

    def tolerance(
        self, images: NDArray[np.uint8], logits: NDArray[np.float32], expected: NDArray[np.float32]
    ) -> float:
        """Return how far ``logits`` and ``expected`` [N, K] of ``images`` may be apart.

        Up to `MOST_JUDGED` images whose difference exceeds `agreement_tolerance`, those with the largest, are
        computed in float64. If rounding explains each error, the tolerance is raised to their differences.
        """
        tolerance = agreement_tolerance(expected, self.rounding)
        differences = image_errors(logits, expected.astype(np.float64))
        if np.isnan(differences).any():
            return tolerance
        beyond = np.flatnonzero(differences > tolerance)
        worst = beyond[np.argsort(-differences[beyond], kind="stable")[:MOST_JUDGED]]
        exact = self.exact_logits(images[worst]) if len(worst) else None
        if exact is None:
            return tolerance
        rounding = replace(
            Rounding.measure(expected[worst], exact), scale=self.scale, bound=reference_bound(expected)
        )
        is_few = len(beyond) <= FEW_SHARE * len(images)
        errors = image_errors(logits[worst], exact)
        if (errors <= rounding.few_allowed(errors, len(worst) if is_few else 0)).all():
            tolerance = min(float(differences[worst].max()), rounding.bound)
        return tolerance
