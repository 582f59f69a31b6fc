"""What each ONNX operation does to the receptive field."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from export.inspection.receptive_field import ReceptiveField, join
from export.inspection.windows import read_window

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

_GLOBAL_POOLS = {"GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"}
_REDUCTIONS = {"ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2"}
_MATRIX_PRODUCTS = {"Gemm", "MatMul"}
# Their answers depend on positions in ways that a window does not describe.
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
    """Return the field of ``node``'s output, given those of its inputs; None where none is defined."""
    sources = [value for value in node.inputs if value is not None and value.const_value is None]
    if node.op_type in _UNDEFINED or not sources or any(value not in fields for value in sources):
        return None
    field = join([fields[value] for value in sources])
    before, after = _sides(sources[0]), _sides(node.outputs[0])
    if field is None or before is None or after is None:
        return None
    window = read_window(node)
    if window is not None:
        return field.through_window(
            kernel=window.kernel, stride=window.stride, dilation=window.dilation, positions=after[2:]
        )
    if node.op_type == "Pad":
        return ReceptiveField(field.size, field.jump, after[-len(field.positions) :])
    if node.op_type in _GLOBAL_POOLS or (
        node.op_type in _REDUCTIONS and _loses_positions(field, before, after)
    ):
        return field.through_whole_map()
    if node.op_type in _MATRIX_PRODUCTS:
        # On a flattened map [1, K]; other products mix tokens, of which a window says nothing.
        return field.through_whole_map() if len(before) == 2 and len(sources) == 1 else None
    return field if _keeps_positions(field, sources, after) else None


def _keeps_positions(field: ReceptiveField, sources: list[ir.Value], after: tuple[int, ...]) -> bool:
    """Tell whether an operation leaves every value in its place, or flattens the map."""
    shapes = [_sides(value) for value in sources]
    is_flattening = len(after) == 2 and any(
        shape and math.prod(shape) == math.prod(after) for shape in shapes
    )
    return after in shapes or after[-len(field.positions) :] == field.positions or is_flattening


def _loses_positions(field: ReceptiveField, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    axes = len(field.positions)
    is_map = before[-axes:] == field.positions and len(before) == axes + 2
    return is_map and math.prod(after) == math.prod(before[:-axes])


def _sides(value: ir.Value) -> tuple[int, ...] | None:
    if value.shape is None or not all(isinstance(side, int) for side in value.shape):
        return None
    return tuple(int(side) for side in list(value.shape))
