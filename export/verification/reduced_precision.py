"""Compares a file in fp16 or int8 with the network it was made from.

On real images its logits are compared with those of the unfolded PyTorch network, as for fp32, but with the
precision's own tolerance. Random images lie outside the ranges that int8 was calibrated on and are clipped.
On these the file is compared with itself, computed node by node in float: this reveals a wrong integer
kernel.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from foldserve.artifact.golden_limits import max_tolerance
from foldserve.export.verification.agreement import check_agreement
from foldserve.export.verification.golden_pairs import replay_golden
from foldserve.export.verification.parity import BATCH_SIZES, check_within, open_sessions, run_logits
from foldserve.export.verification.tolerances import reduced_runtime_tolerance
from foldserve.runtime.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foldserve.artifact.format import Golden
    from foldserve.export.verification.agreement import Agreement
    from foldserve.export.verification.parity import Deviation

_SEED = 2013  # of the random images; any fixed number


@dataclass(frozen=True)
class ReducedParity:
    """The comparisons, and the golden pairs made from them."""

    deviations: tuple[Deviation, ...]
    agreements: tuple[Agreement, ...]
    golden: Golden

    def to_manifest(self) -> dict[str, Any]:
        """Return the manifest's ``parity`` entry."""
        errors = [entry.max_abs_err for entry in self.deviations]
        return {
            "max_abs_err": max(errors + [entry.max_abs_err for entry in self.agreements]),
            "comparisons": [asdict(deviation) for deviation in self.deviations],
            "agreement": [asdict(agreement) for agreement in self.agreements],
        }


def check_reduced_precision(
    content: bytes,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    *,
    expected: NDArray[np.float32],
    golden: Golden,
    tolerance: float,
    unit: float = 0.0,
) -> ReducedParity:
    """Compare ``content``, a lower precision's file, on every device present.

    Args:
        content: the file.
        images: verification images, uint8 [N, C, H, W].
        labels: class indices int64 [N]; None if not known.
        expected: the unfolded PyTorch network's logits of ``images``.
        golden: golden pairs of the fp32 file; their images and the network's logits are kept.
        tolerance: largest difference of logits that is allowed.
        unit: see `reduced_runtime_tolerance`.

    Raises:
        ParityError: the logits differ by more.
        ArtifactError: ONNX Runtime cannot load the file.
    """
    sessions = open_sessions(content)
    literal = Session(content, device="cpu", optimised=False)
    spread = np.linspace(0, len(images) - 1, min(max(BATCH_SIZES), len(images))).astype(np.int64)
    shape = (max(BATCH_SIZES), *images.shape[1:])
    random = np.random.default_rng(_SEED).integers(0, 256, shape, dtype=np.uint8)
    literal_random = run_logits(literal, random)
    deviations: list[Deviation] = []
    for session in sessions:
        deviations += check_within(session, "random", random, literal_random, tolerance)
        deviations += check_within(session, "real", images[spread], expected[spread], tolerance)
    agreements = [
        check_agreement(session, expected, images, labels, tolerance=tolerance) for session in sessions
    ]
    own = run_logits(sessions[0], golden.images)
    rounding = max(
        *(_largest_difference(own, run_logits(other, golden.images)) for other in (literal, *sessions[1:])),
        *(_largest_difference(run_logits(session, random), literal_random) for session in sessions),
    )
    # A server bounds the tolerance by the largest golden logit, which may be less than that of all images.
    tolerance = min(tolerance, max_tolerance(golden.reference_logits))
    lower = replace(
        golden,
        runtime_logits=own,
        reference_tolerance=tolerance,
        runtime_tolerance=min(reduced_runtime_tolerance(own, rounding, unit), tolerance),
    )
    lower.check()
    replay_golden(sessions, lower)
    return ReducedParity(tuple(deviations), tuple(agreements), lower)


def _largest_difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one.astype(np.float64) - other).max())
