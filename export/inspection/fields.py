"""Computes the receptive field after each ONNX operation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from foldserve.export.inspection.receptive_field import ReceptiveField, join
from foldserve.export.inspection.shapes import known_shape
from foldserve.export.inspection.windows import read_window

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

_GLOBAL_POOLS = {"GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"}
_REDUCTIONS = {"ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2"}
_MATRIX_PRODUCTS = {"Gemm", "MatMul"}
# Their outputs depend on positions in ways that a window does not describe.
_UNDEFINED = {
    "ConvTranspose",
    "DepthToSpace",
    "Einsum",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "Resize",
    "SpaceToDepth",
    "Upsample",
}


def field_after(node: ir.Node, fields: Mapping[ir.Value, ReceptiveField]) -> ReceptiveField | None:
    """Return the field of ``node``'s output from the fields of its inputs; None if it is not defined."""
    sources = [value for value in node.inputs if value is not None and value.const_value is None]
    if node.op_type in _UNDEFINED or not sources or any(value not in fields for value in sources):
        return None
    field = join([fields[value] for value in sources])
    shapes = [known_shape(value) for value in sources]
    after = known_shape(node.outputs[0])
    if field is None or None in shapes or after is None:
        return None
    return _field_after(node, field, [shape for shape in shapes if shape is not None], after)


def _field_after(
    node: ir.Node, field: ReceptiveField, shapes: list[tuple[int, ...]], after: tuple[int, ...]
) -> ReceptiveField | None:
    window = read_window(node)
    if window is not None:
        return field.through_window(
            kernel=window.kernel, stride=window.stride, dilation=window.dilation, positions=after[2:]
        )
    if node.op_type == "Pad":
        return ReceptiveField(field.size, field.jump, after[-len(field.positions) :])
    if _joins_positions(node, field, shapes, after):
        return field.through_whole_map()
    return field if _keeps_positions(node, field, shapes, after) else None


def _joins_positions(
    node: ir.Node, field: ReceptiveField, shapes: list[tuple[int, ...]], after: tuple[int, ...]
) -> bool:
    """Tell whether each output value is computed from all positions of the map."""
    before, axes = shapes[0], len(field.positions)
    if node.op_type in _REDUCTIONS:
        is_map = len(before) == axes + 2 and before[-axes:] == field.positions
        return is_map and math.prod(after) == math.prod(before[:-axes])
    if node.op_type in _MATRIX_PRODUCTS:  # a linear layer on a flattened map [1, K]
        return len(before) == 2 and len(shapes) == 1
    return node.op_type in _GLOBAL_POOLS


def _keeps_positions(
    node: ir.Node, field: ReceptiveField, shapes: list[tuple[int, ...]], after: tuple[int, ...]
) -> bool:
    """Tell whether an operation keeps every value in its place, or flattens the map."""
    if node.op_type in _MATRIX_PRODUCTS:  # other products mix tokens, which a window does not describe
        return False
    is_flattening = len(after) == 2 and math.prod(after) in map(math.prod, shapes)
    return after in shapes or after[-len(field.positions) :] == field.positions or is_flattening
