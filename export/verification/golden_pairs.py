"""Chooses, makes and replays golden pairs: images with known logits, which a server checks at load."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from foldserve.artifact.format import MAX_GOLDEN_BYTES, Golden
from foldserve.artifact.golden import replay
from foldserve.errors import ArtifactError
from foldserve.export.errors import ParityError
from foldserve.export.verification.parity import LARGE_SIDE, run_logits, temperature_of
from foldserve.export.verification.tolerances import golden_tolerance, runtime_tolerance
from foldserve.runtime.runner import ModelRunner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from foldserve.runtime.session import Session

COUNT = 256
# Above 64 pixels an image costs a server milliseconds at start-up, and about 100 KiB of file.
COUNT_LARGE = 64
_REPLAY_BATCH_SIZE = 32


def golden_count(image_shape: tuple[int, ...], class_count: int) -> int:
    """Return how many golden pairs to make: at least one per class, if they fit the file."""
    count = COUNT if max(image_shape[1:]) <= LARGE_SIDE else COUNT_LARGE
    pair_bytes = math.prod(image_shape) + 2 * 4 * class_count  # uint8 pixels, and float32 logits twice
    return max(1, min(max(count, class_count), (MAX_GOLDEN_BYTES - 2**16) // pair_bytes))


def choose_golden(labels: NDArray[np.int64] | None, image_count: int, count: int) -> NDArray[np.int64]:
    """Return the positions of ``count`` images, ascending, every class among them.

    If there are fewer images, all are chosen. The classes take turns, each with its images in order; without
    labels the images are spread evenly. The same data set always gives the same choice.
    """
    count = min(count, image_count)
    if labels is None:
        return np.linspace(0, image_count - 1, count).astype(np.int64)
    turn = np.empty(image_count, dtype=np.int64)
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        turn[members] = np.arange(len(members))
    by_turn = np.lexsort((np.arange(image_count), labels, turn))
    chosen: NDArray[np.int64] = np.sort(by_turn[:count])
    return chosen


def make_golden(
    session: Session,
    expected: NDArray[np.float32],
    images: NDArray[np.uint8],
    *,
    rounding: float,
    synthetic: bool,
) -> Golden:
    """Run ``images`` through the file and set the tolerances.

    Args:
        session: the file.
        expected: the unfolded network's logits of ``images``, [N, K].
        images: uint8 [N, C, H, W].
        rounding: see `foldserve.export.verification.tolerances.runtime_tolerance`.
        synthetic: whether the images were generated.
    """
    actual = run_logits(session, images)
    # These images may round more than those that were compared in float64: by half their difference or more.
    rounding = max(rounding, float(np.abs(actual.astype(np.float64) - expected).max()) / 2)
    tolerance = golden_tolerance(expected, rounding)
    golden = Golden(
        images=np.ascontiguousarray(images),
        reference_logits=expected,
        runtime_logits=actual,
        reference_tolerance=tolerance,
        runtime_tolerance=min(runtime_tolerance(actual, rounding), tolerance),
        synthetic=synthetic,
    )
    golden.check()
    return golden


def replay_golden(sessions: Sequence[Session], golden: Golden, batch_size: int = _REPLAY_BATCH_SIZE) -> None:
    """Replay golden pairs as a server does at load, in each session, up to ``batch_size`` images at once.

    Raises:
        ParityError: a session does not reproduce them.
    """
    for session in sessions:
        try:
            replay(
                ModelRunner(session).run_unchecked,
                golden,
                batch_size=batch_size,
                where=session.provider,
                temperature=temperature_of(session),
            )
        except ArtifactError as error:
            raise ParityError(f"{error}; nothing was published") from error
