"""What can be known before running is computed now, and what does nothing is taken out.

The traced graph is literal: a missing bias is a Constant that is expanded at run time, a Dropout an Identity,
a flatten five nodes that compute the batch size. Neither pass knows anything of batch norm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer

if TYPE_CHECKING:
    from collections.abc import Sequence


def simplify(model: ir.Model) -> None:
    """Bring ``model``, in place, to operations on inputs and initializers."""
    _remove_dropouts(model.graph)
    optimizer.fold_constants(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _fix_reshapes(model.graph)
    passes.IdentityEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)


def _remove_dropouts(graph: ir.Graph) -> None:
    for node in list(graph):
        if node.op_type != "Dropout" or node.domain:
            continue
        training = node.inputs[2] if len(node.inputs) > 2 else None
        is_off = training is None or (training.const_value is not None and not training.const_value.numpy())
        mask_is_used = len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output())
        if is_off and not mask_is_used:
            identity = ir.node("Identity", [node.inputs[0]], name=node.name)
            take_over(graph, node, identity)


def _fix_reshapes(graph: ir.Graph) -> None:
    """Give each Reshape whose result has one unknown side a constant shape, with -1 there."""
    for node in list(graph):
        if node.op_type != "Reshape" or node.domain or node.outputs[0].shape is None:
            continue
        sides = [side if isinstance(side, int) else -1 for side in node.outputs[0].shape]
        target = node.inputs[1]
        if sides.count(-1) > 1 or 0 in sides or target is None or target.is_initializer():
            continue
        shape = add_initializer(graph, f"{node.outputs[0].name}.shape", np.array(sides, dtype=np.int64))
        reshape = ir.node("Reshape", [node.inputs[0], shape], name=node.name)
        take_over(graph, node, reshape)


def add_initializer(
    graph: ir.Graph, name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> ir.Value:
    """Register ``array`` under ``name``, or ``name_1``, ... where that is taken."""
    taken = {value.name for node in graph for value in (*node.inputs, *node.outputs) if value is not None}
    taken |= set(graph.initializers) | {value.name for value in graph.inputs}
    unique, suffix = name, 0
    while unique in taken:
        suffix += 1
        unique = f"{name}_{suffix}"
    value = ir.Value(
        name=unique,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=unique),
    )
    graph.register_initializer(value)
    return value


def take_over(graph: ir.Graph, old: ir.Node, nodes: ir.Node | Sequence[ir.Node]) -> None:
    """Put ``nodes`` in ``old``'s place; the last one's output takes its output's name, shape and uses."""
    replacements = [nodes] if isinstance(nodes, ir.Node) else list(nodes)
    graph.insert_before(old, replacements)
    before, after = old.outputs[0], replacements[-1].outputs[0]
    after.name, after.shape, after.type = before.name, before.shape, before.type
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    graph.remove(old, safe=True)
