"""Reads the window that a convolution or pooling slides over a map: kernel, stride, padding, dilation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foldserve.export.inspection.shapes import known_shape

if TYPE_CHECKING:
    import onnx_ir as ir

WINDOWED = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"})


@dataclass(frozen=True)
class Window:
    """One entry per axis; ``padding`` is (before, after) per axis, None if it is chosen to keep the size."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...] | None
    dilation: tuple[int, ...]
    groups: int


def read_window(node: ir.Node) -> Window | None:
    """Return the window of ``node``, with ONNX's defaults filled in; None if it has none."""
    if node.op_type not in WINDOWED:
        return None
    attributes = node.attributes
    kernel = tuple(attributes.get_ints("kernel_shape", ()))
    if not kernel:  # a convolution may omit it: its weight is [out, in / groups, *kernel]
        kernel = (known_shape(node.inputs[1]) or ())[2:]
    axes = len(kernel)
    padding: tuple[tuple[int, int], ...] | None = None
    if attributes.get_string("auto_pad", "NOTSET") not in {"SAME_UPPER", "SAME_LOWER"}:
        pads = attributes.get_ints("pads", (0,) * (2 * axes))
        padding = tuple(zip(pads[:axes], pads[axes:], strict=True))
    return Window(
        kernel=kernel,
        stride=tuple(attributes.get_ints("strides", (1,) * axes)),
        padding=padding,
        dilation=tuple(attributes.get_ints("dilations", (1,) * axes)),
        groups=attributes.get_int("group", 1),
    )
