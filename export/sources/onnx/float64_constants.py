"""Computes in float64 what no image reaches in an ONNX file, as `export.graph.constants` does for PyTorch.

Weights may be computed from others in the file: standardised, normalised, scaled. The file computes them in
float32 for every image, always with the same result. It becomes a constant: computed in float64 from the
file's weights, and rounded once, after batch norm is folded into it.

What only moves numbers (Unsqueeze, Transpose, ConstantOfShape) is exact in float32 too and is left to the
optimiser, as is what is rounded on the way: to whole numbers, to truth values, to other types. So is what
ONNX Runtime computes otherwise: a file may mean float32's own rounding (w + 3 * 2**22 - 3 * 2**22 is a whole
number), and ONNX's evaluator is wrong about some operations (LpNormalization of p = 1).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from foldserve.export.graph.constants import MAX_GROWTH, ROUNDING, SMALL_BYTES
from foldserve.export.graph.serialize import IR_VERSION
from foldserve.export.graph.weights_apart import Weights, array_of
from foldserve.export.sources.onnx.float64_graph import Float64Graph
from foldserve.export.sources.onnx.graph_reads import names_needed, names_read
from foldserve.runtime.options import RuntimeOptions
from foldserve.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

# Of float32 these compute sums, products or functions, which float64 computes closer.
_ARITHMETIC = {
    *(
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Sum",
        "Mean",
        "Pow",
        "Sqrt",
        "Reciprocal",
        "Exp",
        "Log",
        "Tanh",
        "Sigmoid",
    ),
    *("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceProd"),
    *("MatMul", "Gemm", "Einsum", "LpNormalization", "Softmax", "Softplus", "BatchNormalization"),
    *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "Conv", "Sin", "Cos", "Erf"),
}
# These move numbers, or choose among them by their order, without a change.
_MOVING = {
    *("Constant", "ConstantOfShape", "Identity", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten"),
    *("Concat", "Split", "Slice", "Gather", "Expand", "Tile", "Pad", "Shape", "Size", "Range", "Neg", "Abs"),
    *("Max", "Min", "Relu", "Clip", "ReduceMax", "ReduceMin"),
}


def compute_constants(
    model_proto: onnx.ModelProto, weights: Weights | None = None
) -> dict[str, NDArray[np.float64]]:
    """Replace, in place, computed float32 weights by initializers; return their float64 arrays by name.

    ``weights`` are those that the message has without their values.
    """
    graph = model_proto.graph
    constants = _constants(graph)
    makers = {name: node for node in constants for name in node.output}
    arithmetic = _with_arithmetic(constants)
    read = {value.name for value in graph.output}
    for node in graph.node:
        if node.output[0] not in makers:
            read |= names_read(node)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    arrays = {}
    for node in constants:
        name = node.output[0]
        if len(node.output) == 1 and name in arithmetic and name in read:
            value = _value_of(name, constants, tensors, model_proto, weights or Weights())
            if value is not None:
                arrays[name] = value
    for name, array in arrays.items():
        graph.node.remove(makers[name])
        graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    return arrays


def _constants(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes that no image reaches and that compute the same in float64, but closer."""
    known = {tensor.name for tensor in graph.initializer}
    constants = []
    for node in graph.node:
        is_computable = not node.domain and node.op_type in _ARITHMETIC | _MOVING
        if is_computable and all(name in known for name in node.input if name):
            constants.append(node)
            known.update(node.output)
    return constants


def _with_arithmetic(constants: Iterable[onnx.NodeProto]) -> set[str]:
    """Return the names of values that arithmetic has a part in."""
    found: set[str] = set()
    for node in constants:
        if node.op_type in _ARITHMETIC or found.intersection(node.input):
            found.update(node.output)
    return found


def _value_of(
    name: str,
    constants: Iterable[onnx.NodeProto],
    tensors: Mapping[str, onnx.TensorProto],
    model_proto: onnx.ModelProto,
    weights: Weights,
) -> NDArray[np.float64] | None:
    """Return a value in float64; None if it is no float32, too large, or ONNX Runtime computes another."""
    needed = names_needed(name, constants)
    nodes = [node for node in constants if needed.intersection(node.output)]
    given = [_with_values(tensors[entry], weights) for entry in sorted(needed) if entry in tensors]
    if any(tensor.data_type == TensorProto.DOUBLE for tensor in [*given, *_tensors_in(nodes)]):
        return None
    output = onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph(nodes, "constant", [], [output], given)
    part = onnx.helper.make_model(
        graph, opset_imports=model_proto.opset_import, ir_version=max(model_proto.ir_version, IR_VERSION)
    ).SerializeToString()
    origin_bytes = sum(math.prod(tensor.dims) * 4 for tensor in given)
    most_bytes = 2 * max(SMALL_BYTES, MAX_GROWTH * origin_bytes)  # of float64, on the way too
    try:
        value: Any = Float64Graph(part, most_bytes=most_bytes).run({})
    except Exception:  # too large, or the evaluator lacks an operation, or has it for float32 only
        return None
    if not isinstance(value, np.ndarray) or value.dtype != np.float64 or not np.isfinite(value).all():
        return None
    return value if _is_but_rounded(value, part, name) else None


def _with_values(tensor: onnx.TensorProto, weights: Weights) -> onnx.TensorProto:
    if tensor.name not in weights:
        return tensor
    return numpy_helper.from_array(array_of(tensor, weights), tensor.name)


def _is_but_rounded(value: NDArray[np.float64], part: bytes, name: str) -> bool:
    """Tell whether ONNX Runtime computes ``value`` from ``part`` too, but for float32's rounding."""
    options = RuntimeOptions(arena=False)
    try:
        rounded = Session(part, device="cpu", intra_op_threads=1, options=options, optimised=False).run(
            [name], {}
        )[0]
    except Exception:  # ONNX Runtime's own types
        return False
    largest = float(np.abs(value).max(initial=0.0))
    # `<=` is false for NaN.
    return rounded.shape == value.shape and bool((np.abs(rounded - value) <= ROUNDING * largest).all())


def _tensors_in(nodes: Iterable[onnx.NodeProto]) -> list[onnx.TensorProto]:
    """Return the tensors that nodes have as attributes, as Constant and ConstantOfShape."""
    return [entry.t for node in nodes for entry in node.attribute if entry.HasField("t")]
