"""Answers rows of images: what `ray_data.py` and `dask_classify.py` share. Import it; it runs nothing.

Rows have the columns `id` and `image`: encoded files, or the uint8 pixels [C, H, W] as bytes in the size that
the model takes. Each answer has the id, the label, its probability and the SHA-256 of the model.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from foldserve import LocalModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# How encoded files begin: PNG, JPEG, GIF, WebP.
FILES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF")


class Classifier:
    """The model, opened and proven once."""

    def __init__(self, model: str) -> None:
        self._model = LocalModel(model)

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Return the answers for a batch of rows, in their order."""
        predictions = self._model.predict(self._to_images(rows["image"]))
        best = predictions.probabilities.argmax(axis=1)
        return {
            "id": rows["id"],
            # Objects: NumPy's own texts take four bytes per character, which Ray and Arrow would copy.
            "label": np.array(predictions.names, dtype=object)[best],
            "probability": predictions.probabilities[np.arange(len(best)), best],
            "model": np.full(len(best), self._model.hash, dtype=object),
        }

    def _to_images(self, column: Sequence[bytes]) -> NDArray[np.uint8] | list[bytes]:
        shape = self._model.metadata.image.shape
        # A file may happen to be as long as the pixels.
        if any(len(image) != math.prod(shape) or image.startswith(FILES) for image in column):
            return list(column)
        return np.frombuffer(b"".join(column), np.uint8).reshape(-1, *shape)


@cache
def opened(model: str) -> Classifier:
    """Return this process's classifier for the version's folder ``model``."""
    return Classifier(model)
