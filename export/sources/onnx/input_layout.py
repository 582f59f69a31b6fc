"""Tells channels first from channels last by the shape of an ONNX file's image input."""

from __future__ import annotations

import onnx

# Grey and RGB. A side of an image is longer.
_CHANNELS = (1, 3)


def is_channels_last(image: onnx.ValueInfoProto) -> bool:
    """Tell whether ``image`` is [N, H, W, C]: its last side is a number of channels, its second is not."""
    sides = _sides(image)
    return sides[-1] in _CHANNELS and sides[1] not in _CHANNELS


def channels_first(image: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """Return ``image`` as [N, C, H, W]; a size of -1, which Paddle's exporter writes, is left open."""
    sides = _sides(image)
    if is_channels_last(image):
        sides = [sides[0], sides[3], *sides[1:3]]
    named = [side or None for side in sides]
    return onnx.helper.make_tensor_value_info(image.name, image.type.tensor_type.elem_type, named)


def _sides(image: onnx.ValueInfoProto) -> list[int]:
    """Return the size of each side; 0 if the file leaves it open."""
    return [max(0, int(side.dim_value)) for side in image.type.tensor_type.shape.dim]
