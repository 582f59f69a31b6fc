"""Computes the logits of an ONNX file as given, unfolded, to compare its export with.

ONNX Runtime runs it with its optimisations off, since it would fold batch norm by itself.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from foldserve.export.graph.model_file import LARGE_BYTES
from foldserve.export.graph.release_memory import trim_memory
from foldserve.export.sources.onnx.float64_graph import Float64Graph
from foldserve.export.verification.known_logits import KnownLogits
from foldserve.export.verification.reference import in_batches, in_bounded_batches
from foldserve.export.verification.tolerances import credible_rounding
from foldserve.runtime.options import RuntimeOptions
from foldserve.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from foldserve.export.sources.onnx.normalized_file import NormalizedFile


class OnnxReference:
    """Computes the logits of a given ONNX file from uint8 pixels.

    The logits of an image are computed once in float32, however often they are asked for.

    Attributes:
        image_bytes: size of its largest float32 tensor for one image; 0 if that is not known.
    """

    def __init__(self, file: NormalizedFile) -> None:
        self._file = file
        file.prepared.weights.release()  # folding has read them
        self._session: Session | None = None
        self._exact: Float64Graph | None = None
        self.image_bytes = file.prepared.image_bytes
        self._float64_bytes = 0  # measured, as shapes may be unknown
        self._known = KnownLogits()

    def logits(
        self, images: NDArray[np.uint8], on_progress: Callable[[int], None] = lambda _: None
    ) -> NDArray[np.float32]:
        """Return float32 [N, K] of uint8 ``images`` [N, C, H, W]; ``on_progress`` takes numbers of images."""
        return self._known.complete(images, partial(self.run, on_progress=on_progress), on_progress)

    def run(
        self, images: NDArray[np.uint8], on_progress: Callable[[int], None] = lambda _: None
    ) -> NDArray[np.float32]:
        """Return what the file outputs for ``images``, computed anew."""
        return in_batches(self._run, images, on_progress)

    def exact_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """Return float64 [N, K] of ``images``; None if it cannot be computed or differs much from float32.

        A difference that float32 rounding cannot explain means that another function was computed.
        """
        file = self._file
        expected = self.logits(images)
        if file.given.size >= LARGE_BYTES:
            self._session = None  # it holds all weights, and float64 needs memory next
            trim_memory()
        try:
            prepared = file.prepared
            graph = self._exact = self._exact or Float64Graph(
                prepared.model_proto, prepared.exact_weights, weights=prepared.weights
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
        trim_memory()  # ONNX Runtime runs the same images next
        if logits.dtype != np.float64 or logits.shape != expected.shape:
            return None
        is_credible = float(np.abs(logits - expected).max()) <= credible_rounding(expected)
        return logits if is_credible else None

    def _run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        file = self._file
        session = self._session = self._session or Session(
            file.given.loadable, device="cpu", options=RuntimeOptions(arena=False), optimised=False
        )
        size = file.fixed_batch or len(images)
        rows = []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            # The last batch is filled by repetition: a file with a fixed batch takes no smaller one.
            filled = batch[np.arange(size) % len(batch)]
            feeds = {file.image: file.given_input(filled)}
            output = file.logits_of(session.run([file.logits], feeds)[0])
            # Not one row per image: returned as it is, for the caller to refuse.
            rows.append(output[: len(batch)] if len(output) == size else output)
        return np.concatenate(rows)
