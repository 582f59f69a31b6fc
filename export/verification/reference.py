"""Computes the logits that an export is compared with: the unfolded PyTorch network, on the CPU."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from foldserve.export.graph.release_memory import trim_memory
from foldserve.export.verification.float64 import InFloat64, LargestTensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from foldserve.training.models import Normalized

# By size, 32 images of 224 pixels: as many as are compared at once (`parity.BATCH_SIZES`).
_BATCH_BYTES = 32 * 3 * 224 * 224
_MAX_BATCH_SIZE = 256

# Largest tensor of a batch. A few of its size are in memory at once: a layer's input, output and scratch.
_TENSOR_BYTES = 128 * 1024 * 1024


class _Measured(Protocol):
    """What recorded the largest tensor of a run."""

    largest_bytes: int


class TorchReference:
    """Computes the logits of ``module``, which takes uint8 pixels; ``module`` is not changed."""

    def __init__(self, module: Normalized) -> None:
        self._module = module

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [N, K] of uint8 ``images`` [N, C, H, W]."""
        with LargestTensor() as largest:
            return in_bounded_batches(partial(_run, self._module), images, largest)

    def exact_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """Return float64 [N, K] of ``images``, computed in float64 throughout.

        None if some tensor of the network stays float32: then there is no float64 reference.
        """
        logits: NDArray[Any] | None
        try:
            with InFloat64() as largest:
                logits = in_bounded_batches(partial(_run, self._module), images, largest)
        # TorchScript, a buffer that is written, or code of the user's that wants float32 and raises anything.
        except Exception:
            logits = self._logits_of_copy(images)
        return logits if logits is not None and logits.dtype == np.float64 else None

    def _logits_of_copy(self, images: NDArray[np.uint8]) -> NDArray[Any] | None:
        """Return the logits of a copy of the module with float64 weights; None if it cannot be computed."""
        module = copy.deepcopy(self._module).double()
        try:
            with InFloat64() as largest:
                return in_bounded_batches(partial(_run, module), images, largest)
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
    run: Callable[[NDArray[np.uint8]], NDArray[Any]], images: NDArray[np.uint8], largest: _Measured
) -> NDArray[Any]:
    """Return the rows of ``run``: of one image first, which tells how many fit into memory at a time."""
    rows = [run(images[:1])]
    most = max(1, _TENSOR_BYTES // max(1, largest.largest_bytes))
    batch_size = min(batch_size_of(images), most)
    rows += [run(images[start : start + batch_size]) for start in range(1, len(images), batch_size)]
    trim_memory()  # ONNX Runtime runs the same images next
    return np.concatenate(rows)


def batch_size_of(images: NDArray[np.uint8]) -> int:
    """Return how many of ``images`` to run at a time, by their size."""
    image_bytes: int = images[0].nbytes
    return min(_MAX_BATCH_SIZE, max(1, _BATCH_BYTES // image_bytes))


def _run(module: Normalized, images: NDArray[np.uint8]) -> NDArray[Any]:
    with torch.inference_mode():
        logits: NDArray[Any] = module(torch.from_numpy(np.ascontiguousarray(images))).numpy()
    return logits
