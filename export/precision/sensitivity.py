"""Measures how much int8 hurts each layer, and leaves the worst layers in float.

Each layer is quantised alone, and the error that this causes in the logits is compared with their variance:
noise / signal, both mean squares. If int8 in all layers loses more accuracy than allowed, layers are left in
float, the noisiest first, until it no longer does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foldserve.export.precision.quantize import activation_ranges, layer_names, quantize
from foldserve.export.verification.parity import run_logits
from foldserve.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from foldserve.export.precision.calibration import CalibrationImages
    from foldserve.export.precision.quantize import Ranges

_NOISE_IMAGES = 128  # a mean over these and all classes; from about 50 on the order of the layers is stable


@dataclass(frozen=True)
class Quantized:
    """A file that loses ``drop`` points of validation accuracy; ``noise`` is noise / signal by layer.

    ``in_float`` and ``in_int8`` name the layers, in the order of computation.
    """

    content: bytes
    drop: float
    in_int8: tuple[str, ...]
    in_float: tuple[str, ...]
    noise: Mapping[str, float]


def quantize_within(
    content: bytes,
    images: CalibrationImages,
    accuracy_drop: Callable[[bytes], float],
    most_drop: float,
    on_layer: Callable[[int], None] = lambda _: None,
) -> Quantized:
    """Quantise as many layers of ``content`` as keep the accuracy drop within ``most_drop`` points.

    ``accuracy_drop`` measures a file. If a single layer loses more, so does the returned file.

    Raises:
        PrecisionError: the file cannot be quantised.
    """
    ranges = activation_ranges(content, images.training)
    names = layer_names(content)
    noise = _noise_by_layer(content, ranges, images.training[:_NOISE_IMAGES], names, on_layer)
    chosen = dict(names)
    quantized = quantize(content, ranges, chosen)
    drop = accuracy_drop(quantized)
    for node in sorted(names, key=lambda node: -noise[names[node]])[: len(names) - 1]:
        if drop <= most_drop:
            break
        del chosen[node]
        quantized = quantize(content, ranges, chosen)
        drop = accuracy_drop(quantized)
    return Quantized(
        content=quantized,
        drop=drop,
        in_int8=tuple(chosen.values()),
        in_float=tuple(name for node, name in names.items() if node not in chosen),
        noise=noise,
    )


def _noise_by_layer(
    content: bytes,
    ranges: Ranges,
    images: NDArray[np.uint8],
    names: Mapping[str, str],
    on_layer: Callable[[int], None],
) -> dict[str, float]:
    exact = run_logits(Session(content, device="cpu"), images)
    signal = float(exact.var(axis=0).mean())
    noise = {}
    for node, name in names.items():
        logits = run_logits(Session(quantize(content, ranges, [node]), device="cpu"), images)
        noise[name] = float(((logits - exact) ** 2).mean()) / signal if signal else 0.0
        on_layer(1)
    return noise
