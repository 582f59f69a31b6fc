"""A network that comes as an ONNX file, in two forms: as it was given, and ready to be folded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class OnnxNetwork:
    """``given`` answers for the file's maker, ``prepared`` is what becomes `model.onnx`.

    Attributes:
        given: the file's own content, its external data brought in; the logits are one of its outputs.
        prepared: the same computation, unfolded: our opset, one input, one output [batch, K], any batch.
        image: the input's name in both.
        logits: the output's name in ``given``.
        takes_pixels: the input is UINT8 and takes pixels as they are, else FP32 and takes normalised ones.
        fixed_batch: the only batch size that ``given`` takes; None for any.
        class_count: K.
    """

    given: bytes
    prepared: bytes
    image: str
    logits: str
    takes_pixels: bool
    fixed_batch: int | None
    class_count: int

    def to_graph(self) -> ir.Model:
        """Return a new graph of ``prepared``, to be folded in place."""
        return ir.from_proto(onnx.load_from_string(self.prepared))


@dataclass(frozen=True)
class NormalizedFile:
    """``network((pixel / 255 - mean) / std)`` of a file, as `training.models.Normalized` is of a module.

    ``mean`` and ``std`` are not applied where the network takes pixels.
    """

    network: OnnxNetwork
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def network_input(self, pixels: NDArray[np.uint8], dtype: type[np.floating]) -> NDArray[np.generic]:
        """Return what the network sees of ``pixels`` [N, C, H, W], computed in ``dtype`` step by step."""
        if self.network.takes_pixels:
            return pixels
        mean, std = (
            np.array(numbers, dtype=np.float32).astype(dtype).reshape(-1, 1, 1)
            for numbers in (self.mean, self.std)
        )
        floats: NDArray[np.generic] = (pixels.astype(dtype) / dtype(255) - mean) / std
        return floats
