"""Simplifies a traced graph: computes constants, and removes operations that do nothing.

The traced graph is literal: a missing bias is a Constant that is expanded at run time, a Dropout is an
Identity, a flatten is five nodes that compute the batch size. Batch norms are not touched here.
"""

from __future__ import annotations

import ast
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer

from foldserve.export.graph.constants import float64_of

if TYPE_CHECKING:
    from collections.abc import Sequence

# Operations with weights, and PyTorch's names for the weights.
_LAYERS = {
    "Conv": ("weight", "bias"),
    "ConvTranspose": ("weight", "bias"),
    "Gemm": ("weight", "bias"),
    "MatMul": ("weight",),
    "BatchNormalization": ("weight", "bias", "running_mean", "running_var"),
}
# The exporter's entry for the modules around an operation, outermost first, the operation last.
_SCOPES = "pkg.torch.onnx.name_scopes"


def simplify(model: ir.Model) -> None:
    """Reduce ``model``, in place, to operations on inputs and initializers."""
    own = {name for name, value in model.graph.initializers.items() if float64_of(value) is None}
    _remove_dropouts(model.graph)
    optimizer.fold_constants(model)
    _compute_weights(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _fix_reshapes(model.graph)
    _remove_identities(model.graph)
    passes.RemoveUnusedNodesPass()(model)
    _name_weights(model.graph, own)


def _compute_weights(model: ir.Model) -> None:
    """Compute weights that are made of constants (as by weight_norm), whatever their size.

    Other large constants are not computed here: they may be cheaper to compute than to store.
    """
    makers: set[ir.Node] = set()
    waiting = [
        value
        for node in model.graph.all_nodes()
        if not node.domain and node.op_type in _LAYERS
        for value in node.inputs[1:]
        if node.op_type != "MatMul" or _is_transposed_constant(value)
    ]
    while waiting:
        value = waiting.pop()
        producer = None if value is None else value.producer()
        if producer is not None and producer not in makers:
            makers.add(producer)
            waiting += producer.inputs
    optimizer.fold_constants(model, should_fold=lambda node: node in makers, output_size_limit=sys.maxsize)


def _is_transposed_constant(value: ir.Value | None) -> bool:
    """Tell whether ``value`` is a stored matrix transposed, as a linear layer of tokens has it."""
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "Transpose" or producer.inputs[0] is None:
        return False
    return producer.inputs[0].is_initializer()


def _name_weights(graph: ir.Graph, own: set[str]) -> None:
    """Name weights that were computed here, so not among the network's ``own``, after their layer."""
    for node in graph.all_nodes():
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        if node.domain or node.op_type not in _LAYERS or len(scopes) < 2 or not scopes[-2]:
            continue
        for value, part in zip(node.inputs[1:], _LAYERS[node.op_type], strict=False):
            is_made = value is not None and value.is_initializer() and value.name not in own
            if value is not None and is_made and len(value.uses()) == 1 and not value.is_graph_output():
                value.name = unused_name(graph, f"{scopes[-2]}.{part}")


def _remove_dropouts(graph: ir.Graph) -> None:
    for node in list(graph.all_nodes()):
        if node.op_type != "Dropout" or node.domain:
            continue
        training = node.inputs[2] if len(node.inputs) > 2 else None
        is_off = training is None or (training.const_value is not None and not training.const_value.numpy())
        mask_is_used = len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output())
        if is_off and not mask_is_used:
            identity = ir.node("Identity", [node.inputs[0]], name=node.name)
            replace_node(node, identity)


def _remove_identities(graph: ir.Graph) -> None:
    """Remove every Identity, except where a branch returns a value made outside it."""
    for node in list(graph.all_nodes()):
        given, output = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type != "Identity" or node.domain or given is None or node.graph is None:
            continue
        producer = given.producer()
        if output.is_graph_output():
            if producer is None or producer.graph is not node.graph or given.is_graph_output():
                continue
            given.name = output.name  # the graph's output keeps its name
        output.replace_all_uses_with(given, replace_graph_outputs=True)
        node.graph.remove(node, safe=True)


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
        replace_node(node, reshape)


def add_initializer(
    graph: ir.Graph, name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> ir.Value:
    """Register ``array`` under ``name``, or ``name_1``, ... if that is taken."""
    unique = unused_name(graph, name)
    value = ir.Value(
        name=unique,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=unique),
    )
    graph.register_initializer(value)
    return value


def unused_name(graph: ir.Graph, name: str) -> str:
    """Return ``name``, or ``name_1``, ... if a value or node of ``graph`` or its branches has that name."""
    taken = set(graph.initializers) | {value.name for value in graph.inputs}
    for node in graph.all_nodes():
        taken.add(node.name)
        taken.update(value.name for value in (*node.inputs, *node.outputs) if value is not None)
    unique, suffix = name, 0
    while unique in taken:
        suffix += 1
        unique = f"{name}_{suffix}"
    return unique


def free_name(graph: ir.Graph, name: str) -> None:
    """Rename values and nodes called ``name``, which the artifact's contract reserves."""
    values = [*graph.initializers.values(), *graph.inputs]
    for node in graph.all_nodes():
        values += [value for value in (*node.inputs, *node.outputs) if value is not None]
        if node.name == name:
            node.name = unused_name(graph, name)
    for value in values:
        if value.name == name:
            value.name = unused_name(graph, name)


def replace_node(old: ir.Node, nodes: ir.Node | Sequence[ir.Node]) -> None:
    """Replace ``old`` by ``nodes``; the last one's output takes the name, shape and uses of ``old``'s."""
    replacements = [nodes] if isinstance(nodes, ir.Node) else list(nodes)
    graph = old.graph
    assert graph is not None
    graph.insert_before(old, replacements)
    before, after = old.outputs[0], replacements[-1].outputs[0]
    after.name, after.shape, after.type = before.name, before.shape, before.type
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    graph.remove(old, safe=True)
