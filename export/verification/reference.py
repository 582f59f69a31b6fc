"""Computes the logits that an export is compared with: the unfolded PyTorch network, on the CPU."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from foldserve.export.graph.release_memory import trim_memory
from foldserve.export.verification.float64 import InFloat64, LargestTensor
from foldserve.export.verification.known_logits import KnownLogits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from foldserve.training.models import Normalized

# By size, 8 images of 224 pixels: larger batches of these are no faster (docs/export.md, Figures).
_BATCH_BYTES = 8 * 3 * 224 * 224
# Where the size of the network's tensors is known: float64 copies its weights for each batch.
_BOUNDED_BATCH_BYTES = 32 * 3 * 224 * 224
_MAX_BATCH_SIZE = 256

# Largest tensor of a batch. A few of its size are in memory at once: a layer's input, output and scratch.
_TENSOR_BYTES = 128 * 1024 * 1024


class _Measured(Protocol):
    """What recorded the largest tensor of a run."""

    largest_bytes: int


class TorchReference:
    """Computes the logits of ``module``, which takes uint8 pixels; ``module`` is not changed.

    The logits of an image are computed once in float32, however often they are asked for.

    Attributes:
        image_bytes: size of the network's largest float32 tensor for one image; 0 before `logits` was called.
    """

    def __init__(self, module: Normalized) -> None:
        self._module = module
        self._known = KnownLogits()
        self.image_bytes = 0

    def logits(
        self, images: NDArray[np.uint8], on_progress: Callable[[int], None] = lambda _: None
    ) -> NDArray[np.float32]:
        """Return float32 [N, K] of uint8 ``images`` [N, C, H, W]; ``on_progress`` takes numbers of images."""
        rows = self._known.complete(
            images, lambda missing: in_batches(self._in_float32, missing, on_progress), on_progress
        )
        trim_memory()  # ONNX Runtime runs the same images next
        return rows

    def _in_float32(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with LargestTensor() as largest:
            rows, self.image_bytes = in_bounded_batches(
                partial(_run, self._module), images, largest, self.image_bytes
            )
        return rows

    def exact_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """Return float64 [N, K] of ``images``, computed in float64 throughout.

        None if some tensor of the network stays float32: then there is no float64 reference.
        """
        logits: NDArray[Any] | None
        try:
            with InFloat64() as largest:
                logits, _ = in_bounded_batches(
                    partial(_run, self._module), images, largest, 2 * self.image_bytes
                )
        # TorchScript, a buffer that is written, or code of the user's that wants float32 and raises anything.
        except Exception:
            logits = self._logits_of_copy(images)
        trim_memory()
        return logits if logits is not None and logits.dtype == np.float64 else None

    def _logits_of_copy(self, images: NDArray[np.uint8]) -> NDArray[Any] | None:
        """Return the logits of a copy of the module with float64 weights; None if it cannot be computed."""
        module = copy.deepcopy(self._module).double()
        try:
            with InFloat64() as largest:
                return in_bounded_batches(partial(_run, module), images, largest)[0]
        except Exception:  # an operation mixes two types, or as above
            return None


def in_batches(
    run: Callable[[NDArray[np.uint8]], NDArray[Any]],
    images: NDArray[np.uint8],
    on_progress: Callable[[int], None] = lambda _: None,
) -> NDArray[Any]:
    """Return the rows of ``run`` for all ``images``, in batches; ``on_progress`` takes batch sizes."""
    batch_size = batch_size_of(images)
    rows = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        rows.append(run(batch))
        on_progress(len(batch))
    return np.concatenate(rows)


def in_bounded_batches(
    run: Callable[[NDArray[np.uint8]], NDArray[Any]],
    images: NDArray[np.uint8],
    largest: _Measured,
    image_bytes: int = 0,
) -> tuple[NDArray[Any], int]:
    """Return the rows of ``run``, and the size of its largest tensor for one image.

    If ``image_bytes``, that size, is not known, one image is run first, which tells how many fit into memory.
    """
    rows = []
    if not image_bytes:
        rows.append(run(images[:1]))
        image_bytes = largest.largest_bytes
    batch_size = min(batch_size_of(images, _BOUNDED_BATCH_BYTES), _most(image_bytes))
    starts = range(len(rows), len(images), batch_size)
    rows += [run(images[start : start + batch_size]) for start in starts]
    return np.concatenate(rows), image_bytes


def bounded_sizes(sizes: Sequence[int], image_bytes: int) -> list[int]:
    """Return the batch ``sizes``, smaller where a tensor of ``image_bytes`` an image would be too large.

    Two images are always run at once if ``sizes`` ask for it: one does not show that a batch is any length.
    """
    most = max(2, _most(image_bytes))
    return sorted({min(size, most) for size in sizes})


def _most(image_bytes: int) -> int:
    return max(1, _TENSOR_BYTES // max(1, image_bytes))


def batch_size_of(images: NDArray[np.uint8], batch_bytes: int = _BATCH_BYTES) -> int:
    """Return how many of ``images`` to run at a time, by their size."""
    image_bytes: int = images[0].nbytes
    return min(_MAX_BATCH_SIZE, max(1, batch_bytes // image_bytes))


def _run(module: Normalized, images: NDArray[np.uint8]) -> NDArray[Any]:
    with torch.inference_mode():
        logits: NDArray[Any] = module(torch.from_numpy(np.ascontiguousarray(images))).numpy()
    return logits
