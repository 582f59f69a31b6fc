"""Tells through which operations a per-channel affine map can be moved, and on which axis it comes out.

Reshapes and transpositions move numbers and change none; averages over other axes commute with an affine map,
since their weights add up to 1:

    mean(scale * x + shift) = scale * mean(x) + shift        scale and shift constant over what is averaged.

The largest of some numbers commutes with it where no scale is negative:

    max(scale * x + shift) = scale * max(x) + shift          scale >= 0; max pooling pads with -infinity.

In row-major order a reshape keeps the channels together if the channel axis is as long as before and as many
numbers follow each channel: number i belongs to channel (i // following) mod channels, before and after.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from foldserve.export.graph.fold_layers import DeclinedError, node_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from foldserve.export.graph.fold_bn import ChannelAffine
    from foldserve.export.graph.weights import Float64Initializers

_RESHAPES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}
_REDUCTIONS = {"ReduceMean", "ReduceMax"}
_POOLS = {"AveragePool", "GlobalAveragePool", "MaxPool", "GlobalMaxPool"}
_OF_THE_LARGEST = {"MaxPool", "GlobalMaxPool", "ReduceMax"}


def is_route(node: ir.Node) -> bool:
    """Tell whether a map may be moved through ``node`` on some axis."""
    return not node.domain and node.op_type in {*_RESHAPES, *_REDUCTIONS, *_POOLS, "Transpose"}


def axis_before(node: ir.Node, axis: int, affine: ChannelAffine, weights: Float64Initializers) -> int:
    """Return the axis of the first input of ``node`` that becomes ``axis`` of its output.

    Raises:
        DeclinedError: ``affine`` along that axis cannot be moved to the other side of ``node``.
    """
    _check_order(node, affine)
    if node.op_type in _RESHAPES:
        given, made = _sides(node.inputs[0], node), _sides(node.outputs[0], node)
        return _same_channels(node, made, axis, given)
    if node.op_type == "Transpose":
        return _permutation(node, len(_sides(node.inputs[0], node)))[axis]
    if node.op_type in _REDUCTIONS:
        before = _kept(node, weights)[axis]
        if before < 0:
            raise DeclinedError(f"{node_name(node)} joins channels")
        return before
    _check_pool(node, axis, affine)
    return axis


def axis_behind(node: ir.Node, axis: int, affine: ChannelAffine, weights: Float64Initializers) -> int:
    """Return the axis of the output that ``axis`` of the first input becomes; as `axis_before`."""
    _check_order(node, affine)
    if node.op_type in _RESHAPES:
        given, made = _sides(node.inputs[0], node), _sides(node.outputs[0], node)
        return _same_channels(node, given, axis, made)
    if node.op_type == "Transpose":
        return _permutation(node, len(_sides(node.inputs[0], node))).index(axis)
    if node.op_type in _REDUCTIONS:
        kept = _kept(node, weights)
        if axis not in kept:
            raise DeclinedError(f"{node_name(node)} behind it joins channels")
        return kept.index(axis)
    _check_pool(node, axis, affine)
    return axis


def _sides(value: ir.Value | None, node: ir.Node) -> list[int | None]:
    """Return the sides of ``value``, None for those that are not known."""
    if value is None or value.shape is None:
        raise DeclinedError(f"the shapes at {node_name(node)} are not known")
    return [side if isinstance(side, int) else None for side in value.shape]


def _same_channels(
    node: ir.Node, sides: Sequence[int | None], axis: int, others: Sequence[int | None]
) -> int:
    channels, following = sides[axis], _product(sides[axis + 1 :])
    if channels is not None and following is not None:
        for other, side in enumerate(others):
            if side == channels and _product(others[other + 1 :]) == following:
                return other
    raise DeclinedError(f"{node_name(node)} does not keep the channels together")


def _product(sides: Sequence[int | None]) -> int | None:
    known = [side for side in sides if side is not None]
    return math.prod(known) if len(known) == len(sides) else None


def _permutation(node: ir.Node, rank: int) -> list[int]:
    attribute = node.attributes.get("perm")
    return list(range(rank))[::-1] if attribute is None else list(attribute.as_ints())


def _kept(node: ir.Node, weights: Float64Initializers) -> list[int]:
    """Return, for each axis of the output of a reduction, the axis of its input; -1 for a side of 1."""
    rank = len(_sides(node.inputs[0], node))
    attribute = node.attributes.get("axes")
    stored = weights.read(node.inputs[1]) if len(node.inputs) > 1 else None
    if attribute is not None:
        axes = set(attribute.as_ints())
    elif stored is not None and stored.size:
        axes = {int(axis) for axis in stored.reshape(-1)}
    else:
        raise DeclinedError(f"{node_name(node)} joins axes that are not stored")
    reduced = {axis % rank for axis in axes}
    keeps_sides = node.attributes.get("keepdims")
    if keeps_sides is None or keeps_sides.as_int():
        return [-1 if axis in reduced else axis for axis in range(rank)]
    return [axis for axis in range(rank) if axis not in reduced]


def _check_order(node: ir.Node, affine: ChannelAffine) -> None:
    """Check that ``affine`` keeps what is the largest, if ``node`` looks for that."""
    if node.op_type not in _OF_THE_LARGEST:
        return
    if (affine.scale < 0).any():
        raise DeclinedError(f"{node_name(node)} takes the largest, and a scale is negative")
    if len(node.outputs) > 1:
        raise DeclinedError(f"{node_name(node)} tells where the largest is")


def _check_pool(node: ir.Node, axis: int, affine: ChannelAffine) -> None:
    if axis != 1:
        raise DeclinedError(f"{node_name(node)} joins channels")
    if node.op_type != "AveragePool" or affine.keeps_zero:
        return
    # Averages that count a zero border are no averages of the map's results.
    counts = node.attributes.get("count_include_pad")
    if counts is not None and counts.as_int():
        auto_pad, pads = node.attributes.get("auto_pad"), node.attributes.get("pads")
        ceil = node.attributes.get("ceil_mode")
        is_plain = auto_pad is None or auto_pad.as_string() in ("NOTSET", "VALID")
        if not is_plain or (ceil is not None and ceil.as_int()) or (pads is not None and any(pads.as_ints())):
            raise DeclinedError(f"{node_name(node)} counts its zero border")
