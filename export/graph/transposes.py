"""Removes pairs of transpositions that cancel, as between our [N, C, H, W] and a file's [N, H, W, C].

Files from TensorFlow and Keras take channels last and transpose to ONNX's channels first. With our
transposition before theirs, both go. Operations that treat every element alike may stand between, also with a
constant per channel: the transposition is moved behind them. Numbers only move, so results stay the same, bit
for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from foldserve.export.graph.simplify import add_initializer, unused_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

_UNARY = {
    "Identity",
    "Cast",
    "Relu",
    "LeakyRelu",
    "Sigmoid",
    "Tanh",
    "Neg",
    "Abs",
    "Clip",
    "HardSwish",
    "Sqrt",
}
_WITH_CONSTANT = {"Add", "Sub", "Mul", "Div", "PRelu", "Max", "Min", "Pow"}
_MOST_STEPS = 10_000


def cancel_transposes(graph: ir.Graph, start: ir.Value) -> None:
    """Move the transpositions of ``start`` towards the output, until each meets its inverse or cannot move.

    A transposition that does not meet its inverse stays where the network's own operations begin.
    """
    for use in list(start.uses()):
        node: ir.Node | None = use.node
        for _ in range(_MOST_STEPS):
            if node is None or _order(node) is None or node.graph is not graph:
                break
            node = _advance(graph, node)


def _advance(graph: ir.Graph, transpose: ir.Node) -> ir.Node | None:
    """Cancel ``transpose``, or move it behind its only reader and return it; None if neither is possible."""
    order, output = _order(transpose), transpose.outputs[0]
    assert order is not None
    given = transpose.inputs[0]
    assert given is not None
    for use in list(output.uses()):
        following = _order(use.node)
        if following is None or use.node.outputs[0].is_graph_output() or use.node.graph is not graph:
            continue
        if [order[axis] for axis in following] == list(range(len(order))):
            use.node.outputs[0].replace_all_uses_with(given)
            graph.remove(use.node, safe=True)
    uses = list(output.uses())
    if not uses and not output.is_graph_output():
        graph.remove(transpose, safe=True)
        return None
    if len(uses) != 1 or output.is_graph_output():
        return None
    reader, index = uses[0].node, uses[0].idx
    if reader.graph is not graph or reader.domain or len(reader.outputs) != 1:
        return None
    if reader.outputs[0].is_graph_output() or not _move(graph, reader, index, order):
        return None
    return _swap(graph, transpose, reader, index)


def _move(graph: ir.Graph, reader: ir.Node, index: int, order: list[int]) -> bool:
    """Put the constants of ``reader`` in the order of what it will read; tell whether that is possible."""
    if reader.op_type in _UNARY:
        return index == 0
    if reader.op_type == "Pad":
        return index == 0 and _reorder_pads(graph, reader, order)
    if reader.op_type not in _WITH_CONSTANT or len(reader.inputs) != 2:
        return False
    other = reader.inputs[1 - index]
    numbers = None if other is None or not other.is_initializer() else other.const_value
    return numbers is not None and _reorder_constant(graph, reader, 1 - index, numbers.numpy(), order)


def _reorder_constant(
    graph: ir.Graph, reader: ir.Node, index: int, numbers: NDArray[np.generic], order: list[int]
) -> bool:
    if numbers.ndim > len(order) or (reader.op_type == "PRelu" and index == 0):
        return False
    if numbers.size == 1:
        return True
    full = numbers.reshape((1,) * (len(order) - numbers.ndim) + numbers.shape)
    inverse: NDArray[np.int64] = np.argsort(order)
    moved = np.ascontiguousarray(full.transpose(inverse))
    name = f"{reader.outputs[0].name}.constant"
    reader.replace_input_with(index, add_initializer(graph, name, moved))
    return True


def _reorder_pads(graph: ir.Graph, pad: ir.Node, order: list[int]) -> bool:
    pads = pad.inputs[1]
    if len(pad.inputs) > 3 or pads is None or pads.const_value is None:
        return False
    sides = pads.const_value.numpy().reshape(2, -1)
    if sides.shape[1] != len(order):
        return False
    moved = np.ascontiguousarray(sides[:, np.argsort(order)].reshape(-1))
    pad.replace_input_with(1, add_initializer(graph, f"{pads.name}.moved", moved))
    return True


def _swap(graph: ir.Graph, transpose: ir.Node, reader: ir.Node, index: int) -> ir.Node:
    """Let ``reader`` read what ``transpose`` reads, and return a transposition of its output."""
    given, output = transpose.inputs[0], reader.outputs[0]
    order = _order(transpose)
    assert order is not None
    reader.replace_input_with(index, given)
    graph.remove(transpose, safe=True)
    moved = ir.node(
        "Transpose", [output], {"perm": order}, name=unused_name(graph, f"{output.name}.transposed")
    )
    result = moved.outputs[0]
    result.name, result.type = moved.name, output.type
    for use in list(output.uses()):
        if use.node is not moved:
            use.node.replace_input_with(use.idx, result)
    output.shape = None  # it was that of the transposed
    graph.insert_after(reader, moved)
    return moved


def _order(node: ir.Node) -> list[int] | None:
    if node.op_type != "Transpose" or node.domain:
        return None
    order = node.attributes.get("perm")
    return None if order is None else [int(axis) for axis in order.as_ints()]
