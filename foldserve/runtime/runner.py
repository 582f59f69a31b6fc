"""Runs batches of images on a session: pads them if asked to, and checks the outputs."""

from __future__ import annotations

import time
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from foldserve.artifact.format import IMAGE, LOGITS, OUTPUTS
from foldserve.artifact.model_outputs import shape_fault
from foldserve.errors import ModelOutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from foldserve.runtime.session import Session

_TIMED_RUNS = 5


class ModelRunner:
    """Runs batches on one session; may be called from any thread.

    Args:
        session: computes batches of any size.
        padded: sizes that batches are filled up to, each with the session that computes those. The smallest
            that is large enough is taken; none: batches run as they come.
    """

    def __init__(self, session: Session, padded: Sequence[tuple[int, Session]] = ()) -> None:
        self._session = session
        self._padded = sorted(padded, key=itemgetter(0))
        self._class_count = next(spec.shape[1] for spec in session.outputs if spec.name == LOGITS)

    def __call__(self, images: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        """Return logits and probabilities, float32 [n, K] each, of ``images`` uint8 [n, C, H, W].

        Raises:
            ModelOutputError: an output is not finite, or has another shape.
        """
        outputs = self.run_unchecked(images)
        if fault := shape_fault(outputs, len(images), self._class_count):
            raise ModelOutputError(f"{fault}; the request is valid: export the model again")
        logits, probabilities = (np.isfinite(output) for output in outputs)
        if not (logits.all() and probabilities.all()):
            wrong = np.count_nonzero(~(logits & probabilities).all(axis=1))
            raise ModelOutputError(
                f"the model gave NaN or infinity for {wrong} of {len(images)} images; the request "
                "is valid: look for overflow in the model (a low precision?) and export it again"
            )
        return outputs

    def run_unchecked(self, images: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        """Return the outputs without checks; golden pairs are compared with these."""
        count = len(images)
        for size, session in self._padded:
            if count == size:
                return session.run(OUTPUTS, {IMAGE: images})
            if count < size:
                padded = np.zeros((size, *images.shape[1:]), np.uint8)
                padded[:count] = images
                return [output[:count] for output in session.run(OUTPUTS, {IMAGE: padded})]
        return self._session.run(OUTPUTS, {IMAGE: images})

    def seconds_per_batch(
        self, image: NDArray[np.uint8], size: int, clock: Callable[[], float] = time.perf_counter
    ) -> float:
        """Return the shortest time that a batch of ``size`` copies of ``image`` uint8 [1, C, H, W] took.

        ``clock`` returns seconds.
        """
        images = np.repeat(image, size, axis=0)
        self.run_unchecked(images)  # the first run allocates
        durations_s = []
        for _ in range(_TIMED_RUNS):
            started_s = clock()
            self.run_unchecked(images)
            durations_s.append(clock() - started_s)
        return min(durations_s)

    def warm_up(self, image: NDArray[np.uint8], sizes: Sequence[int]) -> None:
        """Run ``image`` uint8 [1, C, H, W] in a batch of each size: first runs are slow."""
        for size in {*sizes, *(size for size, _ in self._padded)}:
            self.run_unchecked(np.repeat(image, size, axis=0))
