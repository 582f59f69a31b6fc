"""Answers rows of images: what `ray_data.py` and `dask_classify.py` share. Import it; it runs nothing.

Rows are an Arrow table with the columns `id` and `image`: encoded files, or the uint8 pixels [C, H, W] as
bytes in the size that the model takes. Each answer has the id, the label, its probability and the SHA-256 of
the model.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foldserve import LocalModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

# How encoded files begin: PNG, JPEG, GIF, WebP.
FILES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF")


class Classifier:
    """The model, opened and proven once."""

    def __init__(self, model: str) -> None:
        self._model = LocalModel(model)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Return the answers for a table of rows, in their order."""
        predictions = self._model.predict(self._to_images(rows["image"].combine_chunks()))
        best = predictions.probabilities.argmax(axis=1)
        return pa.table(
            {
                "id": rows["id"],
                "label": pa.array(predictions.names).take(pa.array(best)),
                "probability": predictions.probabilities[np.arange(len(best)), best],
                "model": pa.repeat(self._model.hash, len(best)),
            }
        )

    def _to_images(self, column: pa.Array) -> NDArray[np.uint8] | list[bytes]:
        shape = self._model.metadata.image.shape
        size = math.prod(shape)
        are_pixels = column.null_count == 0 and pc.all(pc.equal(pc.binary_length(column), size)).as_py()
        # A file may happen to be as long as the pixels.
        have_files = (pc.any(pc.starts_with(column, beginning)).as_py() for beginning in FILES)
        if not are_pixels or any(have_files):
            return list(column.to_pylist())
        pixels = column.cast(pa.binary(size))  # of one length: without a Python object for each row
        first, values = pixels.offset * size, np.frombuffer(pixels.buffers()[1], np.uint8)
        return values[first : first + len(pixels) * size].reshape(-1, *shape)


@cache
def opened(model: str) -> Classifier:
    """Return this process's classifier for the version's folder ``model``."""
    return Classifier(model)
