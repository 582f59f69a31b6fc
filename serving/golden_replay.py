"""Replay an artifact's golden pairs on the session that will serve, and refuse what does not reproduce them.

Two comparisons, both with the largest absolute difference of logits:
- against the unfolded PyTorch model's logits: what was trained is what is served;
- against the file's own logits at export, with a tighter tolerance: the file is undamaged and this runtime
  and device compute it as the exporter's did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from serving.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from serving.artifact import Golden


def replay(
    infer: Callable[[NDArray[np.uint8]], NDArray[np.float32]], golden: Golden, *, batch_size: int, where: str
) -> float:
    """Run every golden image and return the largest difference from the reference logits.

    Args:
        infer: images uint8 [n, C, H, W] -> logits float32 [n, K], on the session that will serve.
        golden: the pairs.
        batch_size: images a run; the first image is also run alone, as a lone caller's would be.
        where: what runs the model, for the message.

    Raises:
        ArtifactError: some pair is not reproduced; the message says how many, by how much and what was
            allowed.
    """
    count = len(golden.images)
    logits = np.concatenate(
        [infer(golden.images[start : start + batch_size]) for start in range(0, count, batch_size)]
    )
    largest = _compare(
        logits, golden.reference_logits, golden.reference_tolerance, "the trained PyTorch model", where
    )
    _compare(logits, golden.runtime_logits, golden.runtime_tolerance, "this file at export", where)
    _compare(
        infer(golden.images[:1]),
        golden.reference_logits[:1],
        golden.reference_tolerance,
        "the trained PyTorch model, one image alone,",
        where,
    )
    return largest


def _compare(
    logits: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float, whose: str, where: str
) -> float:
    if logits.shape != expected.shape:
        raise ArtifactError(
            f"the golden pairs have logits of shape {expected.shape}, the model gives {logits.shape}: "
            "model and golden pairs do not belong together"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged model may give anything
        differences = np.abs(logits.astype(np.float64) - expected).max(axis=1)  # NaN stays NaN
    wrong = ~(differences <= tolerance)  # written so that NaN is wrong
    if wrong.any():
        largest = "not a number" if np.isnan(differences).any() else f"{differences.max():.3g}"
        raise ArtifactError(
            f"{np.count_nonzero(wrong)} of {len(expected)} golden pairs are not reproduced on {where}: "
            f"compared with {whose} the largest logit difference is {largest}, the tolerance "
            f"{tolerance:.3g}; the model is damaged or computes differently here, so it is not served: "
            "export it again or restore it from a good copy"
        )
    return float(differences.max())
