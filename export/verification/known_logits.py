"""Remembers what networks and files computed, since several checks of an export look at the same images.

An image's logits by the network are computed once. A file is run once with each batch: the batch sizes that
are compared, and one image alone or in another order, are runs of their own.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from foldserve.artifact.format import IMAGE, OUTPUTS
from foldserve.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

# Outputs that a session remembers; runs beyond are not remembered.
_MOST_BYTES = 64 * 1024 * 1024


class KnownLogits:
    """The logits of one network, by image: rows [K] of any float type."""

    def __init__(self) -> None:
        self._rows: dict[bytes, NDArray[Any]] = {}

    def add(self, images: NDArray[np.uint8], logits: NDArray[Any]) -> None:
        """Remember ``logits`` [N, K] of ``images`` [N, C, H, W]."""
        self._rows |= zip(_keys(images), logits, strict=True)

    def complete(
        self,
        images: NDArray[np.uint8],
        compute: Callable[[NDArray[np.uint8]], NDArray[Any]],
        on_known: Callable[[int], None] = lambda _: None,
    ) -> NDArray[Any]:
        """Return the logits [N, K] of ``images``; ``compute`` is called for those that are not known.

        ``on_known`` is told how many of them are known.
        """
        keys = _keys(images)
        missing = [place for place, key in enumerate(keys) if key not in self._rows]
        on_known(len(images) - len(missing))
        if missing:
            computed = compute(images[missing])
            if len(computed) != len(missing):  # not one row per image: for the caller to refuse
                return computed
            self.add(images[missing], computed)
        return np.stack([self._rows[key] for key in keys])


class RememberingSession(Session):
    """A session of an exported file that runs no batch of images twice.

    The golden pairs are some or all of the verification images, and their replay begins with all of them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of `Session`."""
        super().__init__(*args, **kwargs)
        self._runs: dict[bytes, list[NDArray[np.float32]]] = {}
        self._bytes = 0

    def run(
        self, output_names: Sequence[str], feeds: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[np.float32]]:
        """Return the named outputs, logits or probabilities."""
        images = feeds[IMAGE]
        key = hashlib.sha256(np.ascontiguousarray(images).data).digest() + bytes(str(images.shape), "ascii")
        outputs = self._runs.get(key)
        if outputs is None:
            outputs = super().run(OUTPUTS, feeds)
            size = sum(output.nbytes for output in outputs)
            if self._bytes + size <= _MOST_BYTES:
                self._bytes += size
                self._runs[key] = outputs
        return [outputs[OUTPUTS.index(name)].copy() for name in output_names]


def _keys(images: NDArray[np.uint8]) -> list[bytes]:
    return [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images]
