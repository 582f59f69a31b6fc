"""A session as it answers: pixels in, logits and probabilities out, padded where asked for, and checked."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from serving.artifact import IMAGE
from serving.errors import ModelOutputError
from serving.responses import OUTPUTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from serving.session import Session

# Sizes besides 1 and the full batch at which logits are compared: even, odd, and across a vector's width.
_COMPARED_SIZES = (2, 3, 7)
# Images that are run alone for it: enough to see a difference, quick for a large network.
_COMPARED_IMAGES = 8
_TIMED_RUNS = 5


class Runner:
    """Runs batches on one session; may be called from any thread.

    Args:
        session: what computes.
        padded_size: rows that every execution is filled up to; 0 for none.
    """

    def __init__(self, session: Session, padded_size: int = 0) -> None:
        self._session = session
        self._padded_size = padded_size

    def __call__(self, images: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        """Return logits and probabilities, float32 [n, K] each, of ``images`` uint8 [n, C, H, W].

        Raises:
            ModelOutputError: a logit is NaN or infinite.
        """
        outputs = self.run_unchecked(images)
        finite = np.isfinite(outputs[0])
        if not finite.all():
            wrong = np.count_nonzero(~finite.all(axis=1))
            raise ModelOutputError(
                f"the model gave NaN or infinity for {wrong} of {len(images)} images, which is no answer; "
                "the request is sound: look for overflow in the model (a low precision?) and export it "
                "again"
            )
        return outputs

    def run_unchecked(self, images: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        """Return the same, whatever the numbers."""
        count = len(images)
        if count >= self._padded_size:
            return self._session.run(OUTPUTS, {IMAGE: images})
        padded = np.zeros((self._padded_size, *images.shape[1:]), np.uint8)
        padded[:count] = images
        return [output[:count] for output in self._session.run(OUTPUTS, {IMAGE: padded})]

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the logits alone, unchecked: what golden pairs are compared with."""
        return self.run_unchecked(images)[0]

    def seconds_an_image(
        self, image: NDArray[np.uint8], clock: Callable[[], float] = time.perf_counter
    ) -> float:
        """Return how long ``image`` uint8 [1, C, H, W] takes alone, at best, by a ``clock`` in seconds."""
        self.run_unchecked(image)  # the first run allocates
        durations_s = []
        for _ in range(_TIMED_RUNS):
            started_s = clock()
            self.run_unchecked(image)
            durations_s.append(clock() - started_s)
        return min(durations_s)

    def warm_up(self, image: NDArray[np.uint8], sizes: Sequence[int]) -> None:
        """Run ``image`` uint8 [1, C, H, W] in a batch of each size: no caller waits for a first run."""
        for size in {max(size, self._padded_size) for size in sizes}:
            self.run_unchecked(np.repeat(image, size, axis=0))

    def is_batch_invariant(self, images: NDArray[np.uint8], max_batch_size: int) -> bool:
        """Tell whether each image's logits are the same bits alone and in any batch that was tried.

        ``images`` uint8 [n, C, H, W]; each is tried at two places of batches of several sizes.
        """
        tried = images[:_COMPARED_IMAGES]
        alone = np.concatenate([self.logits(image[None]) for image in tried])
        for size in {*(size for size in _COMPARED_SIZES if size < max_batch_size), max_batch_size}:
            order = np.arange(size) % len(tried)
            for places in (order, order[::-1]):
                if self.logits(tried[places]).tobytes() != alone[places].tobytes():
                    return False
        return True
