"""Splits and widens per-channel maps at concatenations: the arithmetic of `fold_moves` at a Concat."""

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
    if _concat_axis(node) != axis:
        return [(value, affine) for value in inputs]
    ends = np.cumsum([_side(value, axis, node) for value in inputs])
    return [
        (value, affine.part(slice(end - _side(value, axis, node), end)))
        for value, end in zip(inputs, ends, strict=True)
    ]


def widened_to_output(node: ir.Node, index: int, axis: int, affine: ChannelAffine) -> ChannelAffine:
    """Return the map of a Concat's output that maps only what comes of input ``index``."""
    if _concat_axis(node) != axis:
        raise DeclinedError(f"{node_name(node)} behind it joins it with other values")
    sides = [0 if value is None else _side(value, axis, node) for value in node.inputs]
    scale, shift = np.ones(sum(sides)), np.zeros(sum(sides))
    own = slice(sum(sides[:index]), sum(sides[: index + 1]))
    scale[own], shift[own] = affine.scale, affine.shift
    return ChannelAffine(scale, shift)


def _concat_axis(node: ir.Node) -> int:
    axis, shape = node.attributes["axis"].as_int(), node.outputs[0].shape
    if shape is None:
        raise DeclinedError(f"the shapes at {node_name(node)} are not known")
    return axis % len(shape)


def _side(value: ir.Value, axis: int, node: ir.Node) -> int:
    side = None if value.shape is None else value.shape[axis]
    if not isinstance(side, int):
        raise DeclinedError(f"the shapes at {node_name(node)} are not known")
    return side
