"""Computes the logits of an ONNX file as given, unfolded, to compare its export with.

ONNX Runtime runs it with its optimisations off, since it would fold batch norm by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foldserve.export.sources.onnx.float64_graph import Float64Graph
from foldserve.export.verification.reference import in_batches, in_bounded_batches
from foldserve.export.verification.tolerances import credible_rounding
from foldserve.runtime.options import RuntimeOptions
from foldserve.runtime.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foldserve.export.sources.onnx.normalized_file import NormalizedFile


class OnnxReference:
    """Computes the logits of a given ONNX file from uint8 pixels.

    Attributes:
        image_bytes: size of its largest float32 tensor for one image; 0 if that is not known.
    """

    def __init__(self, file: NormalizedFile) -> None:
        self._file = file
        self._session = Session(
            file.given.loadable, device="cpu", options=RuntimeOptions(arena=False), optimised=False
        )
        self._exact: Float64Graph | None = None
        self.image_bytes = file.prepared.image_bytes
        self._float64_bytes = 0  # measured, as shapes may be unknown

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [N, K] of uint8 ``images`` [N, C, H, W]."""
        return in_batches(self._run, images)

    def exact_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """Return float64 [N, K] of ``images``; None if it cannot be computed or differs much from float32.

        A difference that float32 rounding cannot explain means that another function was computed.
        """
        file = self._file
        try:
            graph = self._exact = self._exact or Float64Graph(
                file.prepared.file.content, file.prepared.exact_weights
            )
            logits, self._float64_bytes = in_bounded_batches(
                lambda batch: graph.run({file.image: file.network_input(batch, np.float64)}),
                images,
                graph,
                self._float64_bytes,
            )
            self.image_bytes = max(self.image_bytes, self._float64_bytes // 2)
        except Exception:  # the evaluator lacks an operation, or has it for float32 only
            return None
        expected = self.logits(images)
        if logits.dtype != np.float64 or logits.shape != expected.shape:
            return None
        is_credible = float(np.abs(logits - expected).max()) <= credible_rounding(expected)
        return logits if is_credible else None

    def _run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        file = self._file
        size = file.fixed_batch or len(images)
        rows = []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            # The last batch is filled by repetition: a file with a fixed batch takes no smaller one.
            filled = batch[np.arange(size) % len(batch)]
            feeds = {file.image: file.given_input(filled)}
            output = file.logits_of(self._session.run([file.logits], feeds)[0])
            # Not one row per image: returned as it is, for the caller to refuse.
            rows.append(output[: len(batch)] if len(output) == size else output)
        return np.concatenate(rows)
