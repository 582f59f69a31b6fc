"""Computes the logits that an export is compared with: the unfolded PyTorch network, on the CPU."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foldserve.export.verification.float64 import InFloat64

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from foldserve.training.models import Normalized

# Large enough to keep threads busy on small images; under 200 MiB of activations for AlexNet at 224 pixels.
_BATCH_BYTES = 8 * 1024 * 1024
_MAX_BATCH_SIZE = 256


class TorchReference:
    """Computes the logits of ``module``, which takes uint8 pixels; ``module`` is not changed."""

    def __init__(self, module: Normalized) -> None:
        self._module = module
        self._exact_module: Normalized | None = None

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [N, K] of uint8 ``images`` [N, C, H, W]."""
        return _run(self._module, images)

    def exact_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """Return float64 [N, K] of ``images``, computed in float64 throughout, on a copy of the module.

        None if some tensor of the network stays float32: then there is no float64 reference.
        """
        if self._exact_module is None:
            self._exact_module = copy.deepcopy(self._module).double()
        try:
            with InFloat64():
                logits = _run(self._exact_module, images)
        except RuntimeError:  # an operation mixes two types
            return None
        return logits if logits.dtype == np.float64 else None


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


def batch_size_of(images: NDArray[np.uint8]) -> int:
    """Return how many of ``images`` to run at a time, by their size."""
    image_bytes: int = images[0].nbytes
    return min(_MAX_BATCH_SIZE, max(1, _BATCH_BYTES // image_bytes))


def _run(module: Normalized, images: NDArray[np.uint8]) -> NDArray[Any]:
    def forward(batch: NDArray[np.uint8]) -> NDArray[Any]:
        logits: NDArray[Any] = module(torch.from_numpy(np.ascontiguousarray(batch))).numpy()
        return logits

    with torch.inference_mode():
        return in_batches(forward, images)
