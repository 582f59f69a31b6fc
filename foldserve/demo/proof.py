"""Compares the answers of PyTorch as trained, ONNX Runtime in this process and the server over gRPC.

All three get the same uint8 images. The reference is the unfolded PyTorch network in eval mode on the CPU.
The others must give its logits within `MAX_LOGIT_DIFFERENCE`, and its prediction if that is decided: if the
two best logits of the reference are closer than twice the tolerance, either class is correct. Their
probabilities must be the softmax of their logits, divided by the temperature that the file names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foldserve.artifact.model_outputs import softmax_errors
from foldserve.export.verification.reference import in_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Logits = NDArray[np.float32]
    Probabilities = NDArray[np.float32]

# Float32 sums in another order differ by some 1e-5 at logits of 20; a wrong fold or border by over 1e-2.
MAX_LOGIT_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class Comparison:
    """One set of answers compared with the reference, over ``count`` images."""

    name: str
    count: int
    correct: int
    identical: int
    undecided: int
    max_difference: float
    passed: bool

    @property
    def accuracy(self) -> float:
        """Fraction of images whose prediction is their label."""
        return self.correct / self.count


def compare_all(
    reference: Logits,
    others: Sequence[tuple[str, Logits, Probabilities]],
    labels: NDArray[np.int64],
    temperature: float = 1.0,
) -> list[Comparison]:
    """Compare ``others``, both outputs [N, K], with ``reference`` [N, K], which is also the first row.

    The probabilities must be softmax(logits / ``temperature``).
    """
    return [
        compare("PyTorch (unfolded, eval)", reference, None, reference, labels),
        *(
            compare(name, logits, probabilities, reference, labels, temperature=temperature)
            for name, logits, probabilities in others
        ),
    ]


def compare(
    name: str,
    logits: Logits,
    probabilities: Probabilities | None,
    reference: Logits,
    labels: NDArray[np.int64],
    *,
    temperature: float = 1.0,
) -> Comparison:
    """Compare ``logits`` [N, K] with ``reference`` [N, K], and ``probabilities``, if given, with ``logits``.

    Logits that are not finite never pass.
    """
    assert logits.shape == reference.shape
    second, first = np.sort(reference, axis=1)[:, -2:].T
    decided = first - second > 2 * MAX_LOGIT_DIFFERENCE
    predictions = logits.argmax(axis=1)
    identical = predictions == reference.argmax(axis=1)
    max_difference = float(np.abs(logits.astype(np.float64) - reference).max())
    return Comparison(
        name=name,
        count=len(labels),
        correct=int((predictions == labels).sum()),
        identical=int(identical.sum()),
        undecided=int((~decided).sum()),
        max_difference=max_difference,
        # Written so that a NaN difference fails.
        passed=max_difference <= MAX_LOGIT_DIFFERENCE
        and bool(identical[decided].all())
        and (probabilities is None or not softmax_errors(logits, probabilities, temperature)[0].any()),
    )


def answer_all(
    run: Callable[[NDArray[np.uint8]], Sequence[NDArray[np.float32]]], images: NDArray[np.uint8]
) -> tuple[Logits, Probabilities]:
    """Return both of ``run``'s outputs [N, K] for all ``images``."""
    outputs = in_batches(lambda batch: np.stack(run(batch), axis=1), images)
    return outputs[:, 0], outputs[:, 1]
