"""What an export is compared with: the unfolded PyTorch network in eval mode, on the CPU."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from export.float64 import InFloat64

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from training.models import Normalized

# Large enough to keep threads busy on small images, and below 200 MiB of activations for a 224-pixel AlexNet.
_BATCH_BYTES = 8 * 1024 * 1024
_MAX_BATCH_SIZE = 256


class TorchReference:
    """Logits of ``module``, which takes uint8 pixels; float64 on a copy, so ``module`` stays as it is."""

    def __init__(self, module: Normalized) -> None:
        self._module = module
        self._exact_module: Normalized | None = None

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [N, K] of uint8 ``images`` [N, C, H, W]."""
        return _run(self._module, images)

    def exact_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the same computed in float64 throughout: the referee between two float32 answers."""
        if self._exact_module is None:
            self._exact_module = copy.deepcopy(self._module).double()
        with InFloat64():
            return _run(self._exact_module, images)


def in_batches(run: Callable[[NDArray[np.uint8]], NDArray[Any]], images: NDArray[np.uint8]) -> NDArray[Any]:
    """Return ``run``'s rows for all ``images``, some at a time."""
    batch_size = min(_MAX_BATCH_SIZE, max(1, _BATCH_BYTES // images[0].nbytes))
    return np.concatenate(
        [run(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
    )


def _run(module: Normalized, images: NDArray[np.uint8]) -> NDArray[Any]:
    def forward(batch: NDArray[np.uint8]) -> NDArray[Any]:
        logits: NDArray[Any] = module(torch.from_numpy(np.ascontiguousarray(batch))).numpy()
        return logits

    with torch.inference_mode():
        return in_batches(forward, images)
