"""Writes a convolution that sees its whole input at once as a linear layer, which a batch makes cheaper.

A kernel as large as the map, without padding, has a single place: its output [N, O, 1, 1] is the linear layer

    y[n, o] = b[o] + sum over c, i, j of w[o, c, i, j] x[n, c, i, j],

with the same weights, row by row. Fully connected layers written as convolutions are such (VGG's, Caffe's
networks), and each convolution behind a global pooling (squeeze-and-excitation, MobileNetV3's last layers).
ONNX Runtime's convolution goes through one image after another and reads all weights for each; its matrix
product reads them once per batch. It also holds four copies of a convolution's weights while it loads them.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from foldserve.export.graph.fold_layers import is_padded
from foldserve.export.graph.simplify import add_initializer, replace_node, unused_name

# Numbers in the weight, 1 MiB. Smaller ones stay in the processor's cache from one image to the next: with
# LeNet's 67,200, a lone image took 3 % longer, and those of a batch of 16 were 5 % faster.
_FEWEST = 262_144


def write_linear_convolutions(graph: ir.Graph) -> None:
    """Replace each convolution of ``graph`` with a single place, and weights that are large, in place."""
    for node in list(graph):
        if node.op_type == "Conv" and not node.domain and _has_one_place(node):
            _write_linear(graph, node)


def _has_one_place(node: ir.Node) -> bool:
    given, weight = node.inputs[0], node.inputs[1]
    if given is None or given.shape is None or weight is None or weight.const_value is None:
        return False
    kernel = list(weight.const_value.shape.numpy())[2:]
    sides = list(given.shape)[2:]
    group, dilations = node.attributes.get("group"), node.attributes.get("dilations")
    return (
        weight.const_value.size >= _FEWEST
        and sides == kernel
        and not is_padded(node)
        and (group is None or group.as_int() == 1)
        and (dilations is None or all(step == 1 for step in dilations.as_ints()) or math.prod(kernel) == 1)
    )


def _write_linear(graph: ir.Graph, node: ir.Node) -> None:
    given, weight, *bias = node.inputs
    assert weight is not None
    assert weight.const_value is not None
    array = weight.const_value.numpy()
    matrix = array.reshape(len(array), -1)
    output = str(node.outputs[0].name)
    rows = ir.node("Flatten", [given], {"axis": 1}, name=unused_name(graph, f"{output}.rows"))
    rows.outputs[0].name = rows.name
    if len(weight.uses()) == 1 and not weight.is_graph_output():
        weight.const_value = ir.tensor(matrix, name=weight.name)
        weight.shape = ir.Shape(matrix.shape)
    else:
        weight = add_initializer(graph, str(weight.name), matrix)
    linear = ir.node("Gemm", [rows.outputs[0], weight, *bias], {"transB": 1}, name=node.name)
    linear.outputs[0].name = unused_name(graph, f"{output}.linear")
    axes = add_initializer(graph, f"{output}.axes", np.arange(2, array.ndim, dtype=np.int64))
    shaped = ir.node("Unsqueeze", [linear.outputs[0], axes], name=unused_name(graph, f"{output}.shaped"))
    replace_node(node, [rows, linear, shaped])
