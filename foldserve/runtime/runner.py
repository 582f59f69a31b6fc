"""A session as it answers: pixels in, logits and probabilities out, padded where asked for, and checked."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from foldserve.artifact.format import IMAGE, LOGITS, OUTPUTS
from foldserve.artifact.model_outputs import misshapen
from foldserve.errors import ModelOutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from foldserve.runtime.session import Session

_TIMED_RUNS = 5


class ModelRunner:
    """Runs batches on one session; may be called from any thread.

    Args:
        session: what computes.
        padded_size: rows that every execution is filled up to; 0 for none.
    """

    def __init__(self, session: Session, padded_size: int = 0) -> None:
        self._session = session
        self._padded_size = padded_size
        self._class_count = next(spec.shape[1] for spec in session.outputs if spec.name == LOGITS)

    def __call__(self, images: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        """Return logits and probabilities, float32 [n, K] each, of ``images`` uint8 [n, C, H, W].

        Raises:
            ModelOutputError: a number is NaN or infinite, or there is not one row of the model's classes an
                image.
        """
        outputs = self.run_unchecked(images)
        if fault := misshapen(outputs, len(images), self._class_count):
            raise ModelOutputError(f"{fault}; the request is sound: export the model again")
        logits, probabilities = (np.isfinite(output) for output in outputs)
        if not (logits.all() and probabilities.all()):
            wrong = np.count_nonzero(~(logits & probabilities).all(axis=1))
            raise ModelOutputError(
                f"the model gave NaN or infinity for {wrong} of {len(images)} images, which is no answer; "
                "the request is sound: look for overflow in the model (a low precision?) and export it "
                "again"
            )
        return outputs

    def run_unchecked(self, images: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        """Return the same, whatever numbers and shapes: what golden pairs are compared with."""
        count = len(images)
        if count >= self._padded_size:
            return self._session.run(OUTPUTS, {IMAGE: images})
        padded = np.zeros((self._padded_size, *images.shape[1:]), np.uint8)
        padded[:count] = images
        return [output[:count] for output in self._session.run(OUTPUTS, {IMAGE: padded})]

    def seconds_a_batch(
        self, image: NDArray[np.uint8], size: int, clock: Callable[[], float] = time.perf_counter
    ) -> float:
        """Return how long a batch of ``size`` copies of ``image`` uint8 [1, C, H, W] takes, at best.

        ``clock`` counts seconds.
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
        """Run ``image`` uint8 [1, C, H, W] in a batch of each size: no caller waits for a first run."""
        for size in {max(size, self._padded_size) for size in sizes}:
            self.run_unchecked(np.repeat(image, size, axis=0))
