"""Holds an ONNX file in two forms: as given, and prepared for folding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx
    from numpy.typing import NDArray

    from foldserve.export.graph.model_file import ModelFile
    from foldserve.export.graph.weights_apart import Weights


@dataclass(frozen=True)
class InputLayout:
    """Tells how the input of a given file differs from [N, C, H, W] of RGB.

    Attributes:
        channels_last: it is [N, H, W, C].
        reversed_channels: its channels are in the reverse order, BGR.
    """

    channels_last: bool = False
    reversed_channels: bool = False

    def of(self, images: NDArray[np.generic]) -> NDArray[np.generic]:
        """Bring ``images`` [N, C, H, W] in RGB into this layout."""
        if self.reversed_channels:
            images = images[:, ::-1]
        if self.channels_last:
            images = images.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images)


@dataclass(frozen=True)
class PreparedFile:
    """A computation that is ready to be folded: our opset, one input, one output [batch, K], any batch.

    Attributes:
        model_proto: the message, without ``weights``.
        weights: its large weights, by name.
        file: both.
        image_bytes: size of its largest float32 tensor for one image; 0 if no shape is known.
        exact_weights: float64 arrays of weights that the given file computes, by name; in ``file`` they are
            rounded to float32.
    """

    model_proto: onnx.ModelProto
    weights: Weights
    file: ModelFile
    image_bytes: int = 0
    exact_weights: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class NormalizedFile:
    """``file((pixel / 255 - mean) / std)``, as `training.models.Normalized` is of a PyTorch module.

    Attributes:
        given: the file's own content, its external data included; the logits are one of its outputs.
        prepared: the same computation, unfolded.
        image: the input's name in both. That of ``prepared`` is [N, C, H, W] in RGB.
        layout: of the input of ``given``.
        logits: the output's name in ``given``.
        takes_pixels: the input is UINT8 pixels, and ``mean`` and ``std`` are not applied; else it is
            normalised FP32.
        fixed_batch: the only batch size that ``given`` takes; None for any.
        class_count: K.
        mean: one per channel of RGB.
        std: one per channel of RGB.
        is_binary: ``given`` outputs one logit z, of the second of two classes; ``prepared`` outputs [0, z].
    """

    given: ModelFile
    prepared: PreparedFile
    image: str
    logits: str
    takes_pixels: bool
    fixed_batch: int | None
    class_count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: InputLayout = InputLayout()
    is_binary: bool = False

    def network_input(self, pixels: NDArray[np.uint8], dtype: type[np.floating]) -> NDArray[np.generic]:
        """Return the input of ``prepared`` for ``pixels`` [N, C, H, W], computed step by step in ``dtype``.

        It is [N, C, H, W] of RGB.
        """
        if self.takes_pixels:
            return pixels
        mean, std = (
            np.array(numbers, dtype=np.float32).astype(dtype).reshape(-1, 1, 1)
            for numbers in (self.mean, self.std)
        )
        floats: NDArray[np.generic] = (pixels.astype(dtype) / dtype(255) - mean) / std
        return floats

    def given_input(self, pixels: NDArray[np.uint8]) -> NDArray[np.generic]:
        """Return the input of ``given`` for ``pixels`` [N, C, H, W], in its own layout."""
        return self.layout.of(self.network_input(pixels, np.float32))

    def logits_of(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits [N, K] that an output of ``given`` means: [0, z] if it is one logit z."""
        rows = rows_of(output)
        if not self.is_binary or rows.ndim != 2:
            return rows
        return np.concatenate([np.zeros_like(rows), rows], axis=1)


def rows_of(output: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an output [N, K, 1, 1], as of a convolution at the end, as [N, K]; any other as it is."""
    sides = [side for side in output.shape[1:] if side != 1]
    return output.reshape(len(output), -1) if output.ndim > 2 and len(sides) <= 1 else output
