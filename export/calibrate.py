"""Fits the temperature that makes probabilities mean what they say.

    probabilities = softmax(logits / T)

T minimises the negative log likelihood of the validation images' labels (Guo et al. 2017, "On Calibration of
Modern Neural Networks", arXiv:1706.04599). Predictions and logits stay as they are. The likelihood is convex
in 1 / T, so its minimum is where its derivative, mean(expected logit - logit of the label), is 0. Bisection
finds it in float64, the same for the same logits. T is rounded to four digits, which absorbs what threads and
machines change in the last bits of a logit.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from foldserve.artifact.calibration import ReliabilityBins
from foldserve.artifact.model_outputs import softmax
from foldserve.artifact.schema import MAX_TEMPERATURE, MIN_TEMPERATURE
from foldserve.export.verification.reference import in_batches

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from foldserve.export.config import ExportConfig
    from foldserve.export.sources.load import Source

    # Shows the progress of a step, given its name and part count; yields a function that takes parts done.
    Counting = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

# With fewer images or mistakes the best temperature is chance: without any mistake it is 0.
MIN_IMAGES, MIN_MISTAKES = 100, 5
_BISECTIONS = 60


@dataclass(frozen=True)
class Calibration:
    """The temperature, and the calibration errors before and after on the images that it was fitted on.

    ``reason`` says why the temperature is 1, "" if it was fitted.
    """

    temperature: float
    images: str
    image_count: int
    error_before: float
    error_after: float
    reason: str = ""

    def to_manifest(
        self, test_logits: NDArray[np.float32], test_labels: NDArray[np.int64] | None
    ) -> dict[str, Any]:
        """Return it as the manifest's entry, with the errors on the test images, which no fit has seen."""
        entry = asdict(self)
        if test_labels is not None:
            before, after = (_bins(test_logits, test_labels, each) for each in (1.0, self.temperature))
            entry["test"] = {
                "image_count": len(test_labels),
                "error_before": before.error,
                "error_after": after.error,
                "reliability": after.to_json(),
            }
        return entry


def calibrate(config: ExportConfig, source: Source, counting: Counting) -> tuple[Source, Calibration | None]:
    """Fit a temperature on the source's validation images and put it into its metadata.

    None without such images (networks made elsewhere), or if ``config`` asks for none.
    """
    held_out = source.validation
    if not config.calibrate or held_out is None or held_out.labels is None:
        return source, None
    with counting("calibration", len(held_out.images)) as on_progress:
        logits = in_batches(source.network.reference().logits, held_out.images, on_progress)
    calibration = fit(logits, held_out.labels, held_out.origin)
    return replace(
        source, metadata=replace(source.metadata, temperature=calibration.temperature)
    ), calibration


def fit(logits: NDArray[np.float32], labels: NDArray[np.int64], images: str) -> Calibration:
    """Return the calibration by ``logits`` [N, K] of ``images`` with ``labels`` [N].

    The temperature stays 1 with too few images or mistakes, or if it would not lower the calibration error.
    """
    count = len(labels)
    mistakes = int((logits.argmax(axis=1) != labels).sum())
    if not np.isfinite(logits).all():  # the parity check will say so
        return Calibration(1.0, images, count, float("nan"), float("nan"), "the logits are not finite")
    before = _bins(logits, labels, 1.0).error if count else float("nan")
    unfitted = Calibration(1.0, images, count, before, before)
    if count < MIN_IMAGES:
        return replace(unfitted, reason=f"{count} {images} are too few; {MIN_IMAGES} are needed")
    if mistakes < MIN_MISTAKES:
        return replace(
            unfitted, reason=f"{mistakes} mistakes are too few to fit on; {MIN_MISTAKES} are needed"
        )
    temperature = best_temperature(logits, labels)
    after = _bins(logits, labels, temperature).error
    if not after < before:
        return replace(unfitted, reason="no temperature lowers the calibration error")
    return Calibration(temperature, images, count, before, after)


def best_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the temperature of least negative log likelihood, within its range, rounded to four digits."""
    exact = logits.astype(np.float64)
    of_labels = exact[np.arange(len(labels)), labels]
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        slope = ((softmax(exact * middle) * exact).sum(axis=1) - of_labels).mean()
        low, high = (middle, high) if slope < 0 else (low, middle)
    rounded = float(f"{2 / (low + high):.4g}")
    return min(max(rounded, MIN_TEMPERATURE), MAX_TEMPERATURE)


def _bins(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float) -> ReliabilityBins:
    bins = ReliabilityBins()
    bins.add(softmax(logits / np.float32(temperature)).max(axis=1), logits.argmax(axis=1) == labels)
    return bins
