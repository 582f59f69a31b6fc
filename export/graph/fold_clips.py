"""Moves a per-channel affine map behind an operation that cuts values off: ReLU, ReLU6, clamp.

    clip(s x + t, low, high)  =  s clip(x, (low - t) / s, (high - t) / s) + t        s > 0

and with the bounds exchanged if s < 0. A channel of s = 0 is the constant clip(t, low, high). So a batch norm
before a ReLU leaves one number per channel, -t / s, with which the maximum is taken instead of 0; scale and
shift go on to the layers behind. If the bounds stay as they are (no shift), so does the operation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from foldserve.export.graph.fold_bn import ChannelAffine
from foldserve.export.graph.fold_layers import DeclinedError, node_name
from foldserve.export.graph.simplify import unused_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foldserve.export.graph.weights import Float64Initializers

# Bounds beyond this would overflow in fp16, and s would be next to nothing.
_MOST = 2.0**15
_TYPES = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE}


@dataclass(frozen=True)
class ChannelClip:
    """What ``node`` becomes before ``affine``: bounds [C], infinite for none; None if it stays as it is."""

    node: ir.Node
    affine: ChannelAffine
    bounds: tuple[NDArray[np.float64], NDArray[np.float64]] | None

    @property
    def left(self) -> str:
        """What is left of the map; "" if there are as many operations as without it."""
        if self.bounds is None or not all(np.isfinite(bound).any() for bound in self.bounds):
            return ""
        return f"{node_name(self.node)} between, which compares each channel with two numbers"


def is_clip(node: ir.Node) -> bool:
    """Tell whether ``node`` cuts values off at one or two bounds."""
    return not node.domain and node.op_type in ("Relu", "Clip")


def clip_before(node: ir.Node, affine: ChannelAffine, weights: Float64Initializers) -> ChannelClip:
    """Return what ``node``, a clip after ``affine``, becomes if ``affine`` is moved behind it.

    Raises:
        DeclinedError: it would not be exact.
    """
    low, high = _bounds(node, weights)
    scale, shift = affine.scale, affine.shift
    value = node.outputs[0]
    if value.shape is None or value.dtype not in _TYPES:
        raise DeclinedError(f"shape or type at {node_name(node)} behind it are not known")
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = (low - shift) / scale, (high - shift) / scale
    is_constant = scale == 0
    least = np.where(is_constant, -np.inf, np.where(scale > 0, first, second))
    most = np.where(is_constant, np.inf, np.where(scale > 0, second, first))
    bounds = np.concatenate([least[np.isfinite(least)], most[np.isfinite(most)]])
    if np.isnan(least).any() or np.isnan(most).any() or (np.abs(bounds) > _MOST).any():
        raise DeclinedError(f"{node_name(node)} behind it would compare with too large numbers")
    moved = ChannelAffine(scale, np.where(is_constant, np.clip(shift, low, high), shift))
    is_same = bool((is_constant | ((least == low) & (most == high))).all())
    return ChannelClip(node, moved, None if is_same else (least, most))


def set_bounds(clip: ChannelClip, axis: int, graph: ir.Graph, weights: Float64Initializers) -> None:
    """Give the node of ``clip`` its bounds, along ``axis`` of its output: a Max, a Min, or both."""
    node, output = clip.node, clip.node.outputs[0]
    if clip.bounds is None:
        return
    assert output.shape is not None
    assert output.dtype is not None
    along = (-1, *[1] * (len(output.shape) - 1 - axis))
    none = float(np.finfo(output.dtype.numpy()).max)
    wanted = [
        (
            operation,
            weights.add(f"{output.name}.{what}", np.clip(bound, -none, none).reshape(along), output.dtype),
        )
        for operation, what, bound in zip(("Max", "Min"), ("least", "most"), clip.bounds, strict=True)
        if np.isfinite(bound).any()
    ]
    given = node.inputs[0]
    for operation, bound in wanted[:-1]:
        before = ir.node(
            operation, [given, bound], name=unused_name(graph, f"{output.name}.{operation.lower()}")
        )
        given = before.outputs[0]
        given.name, given.shape, given.type = before.name, output.shape, output.type
        assert node.graph is not None
        node.graph.insert_before(node, before)
    node.op_type, bound = wanted[-1]
    node.attributes.clear()
    node.resize_inputs(2)
    node.replace_input_with(0, given)
    node.replace_input_with(1, bound)


def _bounds(node: ir.Node, weights: Float64Initializers) -> tuple[float, float]:
    """Return the least and the greatest number that ``node`` lets through; infinite for none."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    found = []
    for position, none in ((1, -np.inf), (2, np.inf)):
        value = node.inputs[position] if len(node.inputs) > position else None
        stored = np.array(none) if value is None else weights.read(value)
        if stored is None or stored.size != 1:
            raise DeclinedError(f"the bounds of {node_name(node)} behind it are computed, not stored")
        found.append(float(stored.reshape(-1)[0]))
    low, high = found
    if low > high:
        raise DeclinedError(f"the bounds of {node_name(node)} behind it are in no order")
    return low, high
