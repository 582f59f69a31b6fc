"""Compares an exported file with the network it was made from, using the server's own session code.

The same images go through the unfolded network, in float32 and in float64, and through the ONNX file: random
and real images, at several batch sizes, on every device present. A check that fails raises, and nothing is
published.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from foldserve.artifact.format import IMAGE, LOGITS, PROBABILITIES, ModelMetadata
from foldserve.artifact.model_outputs import shape_fault, softmax_errors
from foldserve.errors import DeviceError
from foldserve.export.errors import ParityError
from foldserve.export.verification.comparison import (
    ENOUGH,
    Comparison,
    JudgedSet,
    check_shape,
    compare,
    describe,
    max_abs_err,
)
from foldserve.export.verification.known_logits import RememberingSession
from foldserve.export.verification.reference import bounded_sizes, in_batches
from foldserve.export.verification.rounding import Float64Judge, Rounding
from foldserve.runtime.options import RuntimeOptions
from foldserve.runtime.session import Session, cuda_is_present

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from foldserve.export.verification.agreement import Agreement
    from foldserve.runtime.options import Device

BATCH_SIZES = (1, 2, 7, 32)
# Images of each kind that are compared with float64. A fault in the weights shows on all images: the smallest
# that 16 find is a fifth larger than the smallest that 32 find (`python -m benchmarks.fault_sensitivity`). An
# image of more than 64 pixels may cost seconds.
COMPARED_COUNT = 32
COMPARED_COUNT_LARGE = 16
LARGE_SIDE = 64  # pixels
_SEED = 2013  # of the random images; any fixed number


class Reference(Protocol):
    """Computes the logits that the file must agree with, those of an image once.

    Attributes:
        image_bytes: size of its largest float32 tensor for one image; 0 if that is not known (yet).
    """

    image_bytes: int

    def logits(
        self, images: NDArray[np.uint8], on_progress: Callable[[int], None] = ...
    ) -> NDArray[np.float32]:
        """Return float32 [N, K]; ``on_progress`` takes numbers of images."""

    def exact_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """Return float64 [N, K]; None if the network cannot be computed in float64."""


@dataclass(frozen=True)
class Deviation:
    """Largest error of a lower precision's logits on one set of images at one batch size."""

    provider: str
    images: str
    batch_size: int
    max_abs_err: float
    tolerance: float


def open_sessions(model: bytes | Path) -> list[Session]:
    """Open a session on each device present: the CPU, and CUDA if it works.

    They have no arena, which would keep the memory of the largest batch, rounded up, beside the network, and
    run no batch of images twice.

    Raises:
        ArtifactError: ONNX Runtime cannot load the file.
    """
    devices: list[Device] = ["cpu"]
    if cuda_is_present():
        devices.append("cuda")
    sessions: list[Session] = []
    for device in devices:
        try:
            sessions.append(RememberingSession(model, device=device, options=RuntimeOptions(arena=False)))
        except DeviceError:
            if device == "cpu":
                raise
    return sessions


def check_parity(
    session: Session,
    reference: Reference,
    images: NDArray[np.uint8],
    kind: str = "real",
    count: int | None = None,
) -> list[Comparison]:
    """Compare logits and probabilities at each of `BATCH_SIZES`, on random and on ``kind`` ``images``.

    If the network's tensors are large, the largest batches are smaller: all images are run all the same.

    Args:
        session: the file.
        reference: the network.
        images: uint8 [N, C, H, W], of which some are compared, evenly spread.
        kind: what they are, for reports.
        count: how many are compared, and about as many random ones; by default what `compared_count` says.

    Raises:
        ParityError: a difference is above its tolerance, or a logit is not finite.
    """
    count = count or compared_count(images)
    chosen = _spread(images, count)
    # Both kinds fill the largest batch together if neither does alone.
    shape = (max(count, max(BATCH_SIZES) - len(chosen)), *images.shape[1:])
    random = np.random.default_rng(_SEED).integers(0, 256, shape, dtype=np.uint8)
    sets = {"random": random, kind: chosen}
    references = {name: (reference.logits(each), reference.exact_logits(each)) for name, each in sets.items()}
    *sizes, largest = bounded_sizes(BATCH_SIZES, reference.image_bytes)
    in_largest = _run_all(session, list(sets.values()), largest)
    comparisons = []
    scale = 0.0
    for (name, each), (size, whole) in zip(sets.items(), in_largest, strict=True):
        expected, exact = references[name]
        outputs = {
            fewer: session.run([LOGITS, PROBABILITIES], {IMAGE: each[:fewer]})
            for fewer in sorted({min(fewer, len(each)) for fewer in sizes})
        }
        for logits, _ in (*outputs.values(), whole):
            check_shape(logits, expected[: len(logits)])
        if exact is None:
            judged = None
        else:
            # The errors of few images may be small by chance.
            rounding = Rounding.measure(expected, exact, scale if len(each) < ENOUGH else 0.0)
            scale = rounding.scale
            judged = JudgedSet(exact, rounding, rounding.tolerances(whole[0], exact))
        for batch_size, (logits, probabilities) in (*outputs.items(), (size, whole)):
            comparison = compare(session.provider, name, logits, expected, judged, batch_size=batch_size)
            check_probabilities(logits, probabilities, temperature_of(session), describe(comparison))
            comparisons.append(comparison)
    return comparisons


def compared_count(images: NDArray[np.uint8]) -> int:
    """Return how many of ``images`` [N, C, H, W] are compared in float64: fewer of large ones."""
    return COMPARED_COUNT if max(images.shape[2:]) <= LARGE_SIDE else COMPARED_COUNT_LARGE


def _run_all(
    session: Session, sets: Sequence[NDArray[np.uint8]], size: int
) -> list[tuple[int, list[NDArray[np.float32]]]]:
    """Run all images of each set, ``size`` at once, those of both together if a set has fewer.

    Returns, for each set, how many were run at once, and logits and probabilities.
    """
    if min(map(len, sets)) >= size:
        return [(size, _run_in(session, images, size)) for images in sets]
    images = np.concatenate(sets)
    outputs = _run_in(session, images, size)
    ends = np.cumsum([len(each) for each in sets])[:-1]
    parts = zip(*(np.split(output, ends) for output in outputs), strict=True)
    return [(min(size, len(images)), list(part)) for part in parts]


def _run_in(session: Session, images: NDArray[np.uint8], size: int) -> list[NDArray[np.float32]]:
    parts = [
        session.run([LOGITS, PROBABILITIES], {IMAGE: images[start : start + size]})
        for start in range(0, len(images), size)
    ]
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def check_within(
    session: Session,
    name: str,
    images: NDArray[np.uint8],
    expected: NDArray[np.float32],
    tolerance: float,
) -> list[Deviation]:
    """Compare a lower precision's logits of up to 32 of ``images`` with ``expected``, at each batch size.

    Raises:
        ParityError: a logit is off by more than ``tolerance``, or is not finite.
    """
    deviations = []
    for batch_size in BATCH_SIZES:
        rows = slice(0, min(batch_size, len(images)))
        logits, probabilities = session.run([LOGITS, PROBABILITIES], {IMAGE: images[rows]})
        deviation = Deviation(
            provider=session.provider,
            images=name,
            batch_size=len(images[rows]),
            max_abs_err=max_abs_err(logits, expected[rows]),
            tolerance=tolerance,
        )
        where = f"on {name} images, batch {deviation.batch_size}, under {deviation.provider}"
        if not deviation.max_abs_err <= tolerance:  # also catches NaN
            raise ParityError(
                f"{where} the logits are off by up to {deviation.max_abs_err:.3g} (allowed: {tolerance:.3g})"
            )
        check_probabilities(logits, probabilities, temperature_of(session), where)
        deviations.append(deviation)
    return deviations


def run_logits(
    session: Session, images: NDArray[np.uint8], on_progress: Callable[[int], None] = lambda _: None
) -> NDArray[np.float32]:
    """Return the file's logits for all ``images``."""
    return in_batches(lambda batch: session.run([LOGITS], {IMAGE: batch})[0], images, on_progress)


def largest_rounding(comparisons: Sequence[Comparison]) -> float:
    """Return the largest error of float32 against float64, in network or file; else their difference."""
    return max(
        max(
            entry.max_abs_err_float64 or 0.0,
            entry.pytorch_max_abs_err_float64 or 0.0,
            entry.max_abs_err if entry.max_abs_err_float64 is None else 0.0,
        )
        for entry in comparisons
    )


def make_judge(reference: Reference, comparisons: Sequence[Comparison]) -> Float64Judge | None:
    """Return what judges further images by ``comparisons``; None if there is no float64 reference."""
    if not has_float64_reference(comparisons):
        return None
    scale = max(entry.pytorch_max_abs_err_float64 or 0.0 for entry in comparisons)
    return Float64Judge(reference.exact_logits, largest_rounding(comparisons), scale)


def has_float64_reference(comparisons: Sequence[Comparison]) -> bool:
    """Tell whether every comparison has a float64 reference."""
    return all(entry.max_abs_err_float64 is not None for entry in comparisons)


def to_manifest(comparisons: list[Comparison], agreements: list[Agreement]) -> dict[str, Any]:
    """Return both as the manifest's ``parity`` entry."""
    return {
        "max_abs_err": max(
            [entry.max_abs_err for entry in comparisons] + [entry.max_abs_err for entry in agreements]
        ),
        "referee": "float64"
        if has_float64_reference(comparisons)
        else "none: the network cannot be computed in float64",
        "comparisons": [asdict(comparison) for comparison in comparisons],
        "agreement": [asdict(agreement) for agreement in agreements],
    }


def temperature_of(session: Session) -> float:
    """Return the temperature in the file's metadata, by which its graph divides the logits."""
    return ModelMetadata.from_props(session.props).temperature


def check_probabilities(
    logits: NDArray[np.float32], probabilities: NDArray[np.float32], temperature: float, where: str
) -> None:
    """Raise ParityError unless ``probabilities`` [N, K] are the softmax of ``logits`` [N, K]."""
    if fault := shape_fault((logits, probabilities), len(logits), logits.shape[1]):
        raise ParityError(f"{where} {fault}; nothing was published")
    wrong, difference = softmax_errors(logits, probabilities, temperature)
    if wrong.any():
        raise ParityError(
            f"{where} the probabilities of {np.count_nonzero(wrong)} of {len(wrong)} images are not the "
            f"softmax of their logits over the classes (off by up to {difference:.3g}); nothing was published"
        )


def _spread(images: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Return ``count`` of ``images``, evenly spread; all if there are fewer."""
    return images[np.linspace(0, len(images) - 1, min(count, len(images))).astype(np.int64)]
