"""Compares network and file on all verification images: their logits, predictions and accuracies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from foldserve.artifact.format import IMAGE, LOGITS, PROBABILITIES
from foldserve.export.errors import ParityError
from foldserve.export.verification.comparison import max_abs_err
from foldserve.export.verification.parity import check_probabilities, temperature_of
from foldserve.export.verification.reference import in_batches
from foldserve.export.verification.tolerances import reference_tolerance

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from foldserve.export.verification.rounding import Float64Judge
    from foldserve.runtime.session import Session


@dataclass(frozen=True)
class Agreement:
    """Agreement of network and file on the verification images; accuracies are None without labels.

    ``top1_compared`` excludes images whose two best reference logits are closer than twice the tolerance:
    either prediction is right for them.
    """

    provider: str
    image_count: int
    accuracy_before: float | None
    accuracy_after: float | None
    top1_compared: int
    top1_agreement: float
    max_abs_err: float
    tolerance: float


def check_agreement(
    session: Session,
    expected: NDArray[np.float32],
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    *,
    tolerance: float | None = None,
    judge: Float64Judge | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Agreement:
    """Compare the file's logits of all ``images`` with ``expected``, the reference's logits.

    ``tolerance`` is that of fp32 by default: what ``judge`` says, or the plain one if there is no float64
    reference.

    Raises:
        ParityError: a logit is off by more than the tolerance, a clear prediction differs, or probabilities
            are not the softmax of the logits.
    """
    logits = in_batches(partial(_checked_logits, session), images, on_progress)
    largest = max_abs_err(logits, expected)
    if tolerance is None:
        tolerance = (
            reference_tolerance(expected) if judge is None else judge.tolerance(images, logits, expected)
        )
    before, after = expected.argmax(axis=1), logits.argmax(axis=1)
    is_sure = _margins(expected) > 2 * tolerance
    agreement = Agreement(
        provider=session.provider,
        image_count=len(images),
        accuracy_before=None if labels is None else float((before == labels).mean()),
        accuracy_after=None if labels is None else float((after == labels).mean()),
        top1_compared=int(is_sure.sum()),
        top1_agreement=float((before == after)[is_sure].mean()) if is_sure.any() else 1.0,
        max_abs_err=largest,
        tolerance=tolerance,
    )
    # `not <=` also catches NaN, which compares false with everything.
    if not largest <= tolerance or agreement.top1_agreement < 1.0:
        raise ParityError(
            f"on {len(images)} images under {session.provider} the file's logits differ by up to "
            f"{largest:.3g} from the network's (allowed: {tolerance:.3g}), and "
            f"{agreement.top1_agreement:.2%} of {agreement.top1_compared} clear predictions are the "
            f"same{'' if judge is None else f'; {judge}'}; nothing was published"
        )
    return agreement


def _checked_logits(session: Session, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the file's logits of ``images``, after checking that the probabilities are their softmax."""
    logits, probabilities = session.run([LOGITS, PROBABILITIES], {IMAGE: images})
    where = f"on {len(images)} images under {session.provider}"
    check_probabilities(logits, probabilities, temperature_of(session), where)
    return logits


def _margins(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the difference between the two largest logits of each row; infinite for a single class."""
    if logits.shape[1] < 2:
        return np.full(len(logits), np.inf, dtype=np.float32)
    two_best = np.partition(logits, -2, axis=1)[:, -2:]
    margins: NDArray[np.float32] = two_best[:, 1] - two_best[:, 0]
    return margins
