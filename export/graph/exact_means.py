"""Writes the mean over a large map as two: the mean of each row, and the mean of those.

ONNX Runtime adds up a map one number after the other, in float32. Where neighbours are alike, as in a flat
part of a picture, all additions round in the same direction: the mean of a flat map of 28x28 is off by up to
1.5e-6 of itself, of 112x112 by 2.3e-5, and GlobalAveragePool's by twice as much. PyTorch adds up in a tree
and stays below 6e-7, so that sound networks were refused. Two means round as PyTorch does, and take 1.0 to
1.4 times as long as one, which is less than GlobalAveragePool takes.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from foldserve.export.graph.simplify import add_initializer, replace_node, unused_name

# Places of a map. A mean over 7x7, the usual size, rounds as PyTorch's, and two take four times as long.
_FEWEST = 128
_MAP_RANK = 4  # [N, C, H, W]
_ROWS, _COLUMNS = 2, 3


def write_exact_means(graph: ir.Graph) -> None:
    """Replace each mean of ``graph`` over a large map [N, C, H, W] of known sides by two, in place."""
    for node in list(graph):
        if not node.domain and _is_over_map(node):
            _write_two(graph, node)


def _is_over_map(node: ir.Node) -> bool:
    if node.op_type not in ("ReduceMean", "GlobalAveragePool"):
        return False
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    if shape is None or len(shape) != _MAP_RANK:
        return False
    sides = list(shape)[_ROWS:]
    known = [side for side in sides if isinstance(side, int)]
    if len(known) < len(sides) or math.prod(known) < _FEWEST:
        return False
    return node.op_type == "GlobalAveragePool" or _axes(node) == {_ROWS, _COLUMNS}


def _axes(node: ir.Node) -> set[int]:
    """Return the axes of a ReduceMean, empty if they are not constant."""
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is None or given.const_value is None:
        return set()
    return {int(axis) % _MAP_RANK for axis in given.const_value.numpy().reshape(-1)}


def _write_two(graph: ir.Graph, node: ir.Node) -> None:
    given, output = node.inputs[0], node.outputs[0]
    assert given is not None
    assert given.shape is not None
    keeps = node.attributes.get("keepdims")
    keepdims = 1 if keeps is None else keeps.as_int()
    name = str(output.name)
    columns = add_initializer(graph, f"{name}.columns", np.array([_COLUMNS], np.int64))
    rows = add_initializer(graph, f"{name}.rows", np.array([_ROWS], np.int64))
    # Without the axis that was averaged, the next one is the last: that is quick.
    first = ir.node("ReduceMean", [given, columns], {"keepdims": 0}, name=unused_name(graph, f"{name}.row"))
    means = first.outputs[0]
    means.name, means.type = first.name, given.type
    means.shape = ir.Shape(list(given.shape)[:_COLUMNS])
    second = ir.node("ReduceMean", [means, rows], {"keepdims": keepdims}, name=node.name)
    nodes = [first, second]
    if keepdims:  # [N, C, 1] becomes [N, C, 1, 1]
        second.outputs[0].name = unused_name(graph, f"{name}.mean")
        nodes.append(
            ir.node("Unsqueeze", [second.outputs[0], columns], name=unused_name(graph, f"{name}.map"))
        )
    replace_node(node, nodes)
