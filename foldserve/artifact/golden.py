"""Replays an artifact's golden pairs on the session that will serve, and refuses models that differ.

Logits are compared twice, each time by the largest absolute difference:
- with those of the unfolded PyTorch model: the trained model is the one that is served;
- with those of the file at export, at a tighter tolerance: the file is undamaged, and this runtime and device
  compute it as the exporter's did.

The probabilities must be the softmax of the logits over the classes, so golden pairs need not hold them. All
checks are made on full batches, on single images and on batches of other sizes: an image's outputs must not
depend on the other images in its batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from foldserve.artifact.model_outputs import shape_fault, softmax_errors
from foldserve.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from foldserve.artifact.format import Golden

# Batch sizes to compare besides 1 and the full batch: even, odd, and across a vector's width.
_COMPARED_SIZES = (2, 3, 7)
# Images to run alone for that: enough to see a difference, and quick for a large network.
_COMPARED_IMAGES = 8


@dataclass(frozen=True)
class Replay:
    """Holds the measurements of a replay that reproduced all pairs.

    ``largest_difference`` is from the reference logits. ``batch_invariant`` tells whether each image had
    bit-identical logits and probabilities alone and in any batch tried.
    """

    largest_difference: float
    batch_invariant: bool


def replay(
    run: Callable[[NDArray[np.uint8]], Sequence[NDArray[np.float32]]],
    golden: Golden,
    *,
    batch_size: int,
    where: str,
    temperature: float = 1.0,
) -> Replay:
    """Run all golden images in full batches, and some alone and in batches of other sizes and orders.

    Args:
        run: images uint8 [n, C, H, W] -> logits and probabilities float32 [n, K], on the session that will
            serve.
        golden: the pairs.
        batch_size: number of images in a full batch.
        where: name of the execution provider, for messages.
        temperature: that of the model's metadata.

    Raises:
        ArtifactError: a pair is not reproduced, or its probabilities are not the softmax of its logits; the
            message says how many, by how much, and the tolerance.
    """
    count = len(golden.images)
    every = np.arange(count)
    full = _run(run, golden, np.split(every, every[batch_size::batch_size]))
    check = partial(_check, golden=golden, where=where, temperature=temperature)
    largest = check(full, places=every, how="")
    tried = np.arange(min(count, _COMPARED_IMAGES))
    alone = _run(run, golden, np.split(tried, len(tried)))
    check(alone, places=tried, how=", one image alone,")
    is_invariant = True
    for size in {*(size for size in _COMPARED_SIZES if size < batch_size), batch_size}:
        order = tried[np.arange(size) % len(tried)]
        for rows in (order, order[::-1]):
            together = _run(run, golden, [rows])
            check(together, places=rows, how=f", in a batch of {size},")
            is_invariant &= all(
                output.tobytes() == lone[rows].tobytes() for output, lone in zip(together, alone, strict=True)
            )
    return Replay(largest, is_invariant)


def _run(
    run: Callable[[NDArray[np.uint8]], Sequence[NDArray[np.float32]]],
    golden: Golden,
    batches: Sequence[NDArray[np.int64]],
) -> list[NDArray[np.float32]]:
    """Return logits and probabilities of golden images, with one run per batch of their indices."""
    runs = []
    for places in batches:
        outputs = run(golden.images[places])
        fault = shape_fault(outputs, len(places), golden.reference_logits.shape[1])
        if fault:
            raise ArtifactError(f"{fault}: the golden pairs are of another model")
        runs.append(outputs)
    return [np.concatenate(arrays) for arrays in zip(*runs, strict=True)]


def _check(
    answers: Sequence[NDArray[np.float32]],
    *,
    golden: Golden,
    places: NDArray[np.int64],
    where: str,
    how: str,
    temperature: float,
) -> float:
    """Compare the outputs for the golden images at ``places``; return the largest logit difference."""
    logits, probabilities = answers
    whose = f"the trained PyTorch model{how}"
    largest = _compare(
        logits, golden.reference_logits[places], golden.reference_tolerance, whose=whose, where=where
    )
    whose = f"this file at export{how}"
    _compare(logits, golden.runtime_logits[places], golden.runtime_tolerance, whose=whose, where=where)
    wrong, difference = softmax_errors(logits, probabilities, temperature)
    if wrong.any():
        shown = "NaN" if np.isnan(difference) else f"off by up to {difference:.3g}"
        raise ArtifactError(
            f"the probabilities of {np.count_nonzero(wrong)} of {len(wrong)} golden images on {where}{how} "
            f"are not the softmax of their logits{_divided(temperature)} over the classes ({shown}): export "
            "the model again or restore it from a good copy"
        )
    return largest


def _divided(temperature: float) -> str:
    return "" if temperature == 1.0 else f" / {temperature:g}"


def _compare(
    logits: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float, *, whose: str, where: str
) -> float:
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged model may output anything
        differences = np.abs(logits.astype(np.float64) - expected).max(axis=1)  # NaN stays NaN
    wrong = ~(differences <= tolerance)  # written so that NaN is wrong
    if wrong.any():
        largest = "NaN" if np.isnan(differences).any() else f"{differences.max():.3g}"
        raise ArtifactError(
            f"{np.count_nonzero(wrong)} of {len(expected)} golden pairs are not reproduced on {where}: "
            f"compared with {whose} the largest logit difference is {largest}, the tolerance is "
            f"{tolerance:.3g}; the model is damaged or computes differently here: export it again or "
            "restore it from a good copy"
        )
    return float(differences.max())
