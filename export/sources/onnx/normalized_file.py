"""Holds an ONNX file in two forms: as given, and prepared for folding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class NormalizedFile:
    """``file((pixel / 255 - mean) / std)``, as `training.models.Normalized` is of a PyTorch module.

    Attributes:
        given: the file's own content, its external data included; the logits are one of its outputs.
        prepared: the same computation, unfolded: our opset, one input, one output [batch, K], any batch.
        image: the input's name in both.
        logits: the output's name in ``given``.
        takes_pixels: the input is UINT8 pixels, and ``mean`` and ``std`` are not applied; else it is
            normalised FP32.
        fixed_batch: the only batch size that ``given`` takes; None for any.
        class_count: K.
        mean: one per channel.
        std: one per channel.
    """

    given: bytes
    prepared: bytes
    image: str
    logits: str
    takes_pixels: bool
    fixed_batch: int | None
    class_count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def network_input(self, pixels: NDArray[np.uint8], dtype: type[np.floating]) -> NDArray[np.generic]:
        """Return the network's input for ``pixels`` [N, C, H, W], computed in ``dtype`` step by step."""
        if self.takes_pixels:
            return pixels
        mean, std = (
            np.array(numbers, dtype=np.float32).astype(dtype).reshape(-1, 1, 1)
            for numbers in (self.mean, self.std)
        )
        floats: NDArray[np.generic] = (pixels.astype(dtype) / dtype(255) - mean) / std
        return floats
