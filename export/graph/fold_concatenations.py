"""Splits and widens per-channel maps where channels are joined or split, for `fold_moves`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foldserve.export.graph.fold_bn import ChannelAffine
from foldserve.export.graph.fold_layers import DeclinedError, node_name

if TYPE_CHECKING:
    import onnx_ir as ir


def parts_of_inputs(node: ir.Node, axis: int, affine: ChannelAffine) -> list[tuple[ir.Value, ChannelAffine]]:
    """Return the inputs of a Concat, each with its part of ``affine``, a map of the output along ``axis``."""
    inputs = [value for value in node.inputs if value is not None]
    if _axis(node) != axis:
        return [(value, affine) for value in inputs]
    ends = np.cumsum([_side(value, axis, node) for value in inputs])
    return [
        (value, affine.part(slice(end - _side(value, axis, node), end)))
        for value, end in zip(inputs, ends, strict=True)
    ]


def widened_to_output(node: ir.Node, index: int, axis: int, affine: ChannelAffine) -> ChannelAffine:
    """Return the map of a Concat's output that maps only what comes of input ``index``."""
    if _axis(node) != axis:
        raise DeclinedError(f"{node_name(node)} behind it joins it with other values")
    return _widened(
        [0 if value is None else _side(value, axis, node) for value in node.inputs], index, affine
    )


def parts_of_outputs(node: ir.Node, axis: int, affine: ChannelAffine) -> list[tuple[ir.Value, ChannelAffine]]:
    """Return the outputs of a Split that are read, each with its part of ``affine``, a map of the input."""
    parts = [affine] * len(node.outputs)
    if _axis(node) == axis:
        sides = [_side(value, axis, node) for value in node.outputs]
        parts = [
            affine.part(slice(end - side, end)) for side, end in zip(sides, np.cumsum(sides), strict=True)
        ]
    pairs = zip(node.outputs, parts, strict=True)
    return [(value, part) for value, part in pairs if value.uses() or value.is_graph_output()]


def widened_to_input(node: ir.Node, value: ir.Value, axis: int, affine: ChannelAffine) -> ChannelAffine:
    """Return the map of a Split's input that maps only what becomes ``value``, one of its outputs."""
    if _axis(node) != axis:
        raise DeclinedError(f"{node_name(node)} before it has other parts")
    sides = [_side(part, axis, node) for part in node.outputs]
    return _widened(sides, list(node.outputs).index(value), affine)


def _widened(sides: list[int], index: int, affine: ChannelAffine) -> ChannelAffine:
    """Return ``affine`` for part ``index`` of the channels, whose parts are as long as ``sides`` says."""
    scale, shift = np.ones(sum(sides)), np.zeros(sum(sides))
    own = slice(sum(sides[:index]), sum(sides[: index + 1]))
    scale[own], shift[own] = affine.scale, affine.shift
    return ChannelAffine(scale, shift)


def _axis(node: ir.Node) -> int:
    """Return the axis along which a Concat joins or a Split splits."""
    attribute, shape = node.attributes.get("axis"), node.outputs[0].shape
    if shape is None:
        raise DeclinedError(f"the shapes at {node_name(node)} are not known")
    return (0 if attribute is None else attribute.as_int()) % len(shape)


def _side(value: ir.Value, axis: int, node: ir.Node) -> int:
    side = None if value.shape is None else value.shape[axis]
    if not isinstance(side, int):
        raise DeclinedError(f"the shapes at {node_name(node)} are not known")
    return side
