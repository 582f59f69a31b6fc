"""What an adopted file is compared with: its own answers, as it was given, before anything is folded.

ONNX Runtime computes them node by node, its optimisations off, since it would fold batch norm by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from foldserve.export.sources.onnx.float64_graph import Float64Graph
from foldserve.export.verification.reference import in_batches
from foldserve.export.verification.tolerances import reference_tolerance
from foldserve.runtime.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foldserve.export.sources.onnx.normalized_file import NormalizedFile


class OnnxReference:
    """Logits that a given ONNX file answers for uint8 pixels."""

    def __init__(self, file: NormalizedFile) -> None:
        self._file = file
        self._session = Session(file.given, device="cpu", optimised=False)

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [N, K] of uint8 ``images`` [N, C, H, W]."""
        return in_batches(self._run, images)

    def exact_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """Return the same in float64; None where that cannot be computed, or is not to be believed.

        A referee that is further from the file than float32 ever is has computed something else.
        """
        file = self._file
        try:
            graph = Float64Graph(file.prepared)
            logits: NDArray[Any] = in_batches(
                lambda batch: graph.run({file.image: file.network_input(batch, np.float64)}),
                images,
            )
        except Exception:  # operations that the graph's evaluator lacks, or has for float32 alone
            return None
        expected = self.logits(images)
        if logits.dtype != np.float64 or logits.shape != expected.shape:
            return None
        is_credible = float(np.abs(logits - expected).max()) <= reference_tolerance(expected)
        return logits if is_credible else None

    def _run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        file = self._file
        size = file.fixed_batch or len(images)
        rows = []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            # The last batch is filled up by repetition: the file takes no smaller one.
            filled = batch[np.arange(size) % len(batch)]
            feeds = {file.image: file.network_input(filled, np.float32)}
            answer = self._session.run([file.logits], feeds)[0]
            # Not a row an image: left as it is, for the caller to see.
            rows.append(answer[: len(batch)] if len(answer) == size else answer)
        return np.concatenate(rows)
