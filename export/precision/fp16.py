"""The folded file in half precision: weights and arithmetic in float16, pixels and answers as before.

Normalisation stays in float32, where a pixel and the mean cancel, and so does the softmax; between them every
float becomes a half. A half holds 11 bits, so each value is off by up to 1 in 2048, and nothing above 65,504
can be held: whether that is good enough is for `foldserve.export.precision.choose` to measure.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from foldserve.artifact.format import LOGITS, PROBABILITIES
from foldserve.export.errors import PrecisionError, TraceError
from foldserve.export.graph.normalise import is_normalisation
from foldserve.export.graph.serialize import to_bytes, to_model_proto

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def to_fp16(content: bytes) -> bytes:
    """Return ``content``, a ``model.onnx`` of ours in float32, with the network between in float16.

    Raises:
        PrecisionError: it has an operator that ONNX does not define on halves.
    """
    model_proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(content))
    props = {entry.key: entry.value for entry in model_proto.metadata_props}
    model = ir.from_proto(model_proto)
    (probabilities,) = (value for value in model.graph.outputs if value.name == PROBABILITIES)
    softmax = _producer(probabilities)
    body = [node for node in model.graph if node is not softmax and not is_normalisation(node)]
    _cast_inputs(model.graph, body)
    for node in body:
        _halve(node)
    _cast_logits(model.graph, softmax)
    try:
        return to_bytes(to_model_proto(model, props))
    except TraceError as error:
        raise PrecisionError(f"the network cannot be computed in half precision: {error}") from error


def _cast_inputs(graph: ir.Graph, body: list[ir.Node]) -> None:
    """Let ``body`` read halves of what the nodes before it computed in float32."""
    inside = set(body)
    halves: dict[ir.Value, ir.Value] = {}
    for node in body:
        for index, value in enumerate(node.inputs):
            if value is None or value.producer() in inside or value.is_initializer() or value.dtype != _FLOAT:
                continue
            if value not in halves:
                halves[value] = _cast(value, _HALF, f"{value.name}.half")
                graph.insert_before(body[0], [_producer(halves[value])])
            node.replace_input_with(index, halves[value])


def _halve(node: ir.Node) -> None:
    """Turn a node's float constants, attributes and outputs into halves."""
    for value in node.inputs:
        if value is None or not value.is_initializer() or value.dtype != _FLOAT:
            continue
        assert value.const_value is not None
        value.const_value = _half_tensor(value.const_value)
        value.dtype = _HALF
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _FLOAT:
            node.attributes[name] = ir.AttrTensor(name, _half_tensor(attribute.as_tensor()))
        if node.op_type == "Cast" and name == "to" and attribute.as_int() == _FLOAT:
            node.attributes[name] = ir.AttrInt64(name, _HALF)
    for output in node.outputs:
        if output.dtype == _FLOAT:
            output.dtype = _HALF


def _cast_logits(graph: ir.Graph, softmax: ir.Node) -> None:
    (halves,) = (value for value in graph.outputs if value.name == LOGITS)
    halves.name = f"{LOGITS}.half"
    floats = _cast(halves, _FLOAT, LOGITS)
    graph.insert_before(softmax, [_producer(floats)])
    softmax.replace_input_with(0, floats)
    graph.outputs[list(graph.outputs).index(halves)] = floats


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
    output = ir.node("Cast", [value], {"to": dtype}, name=f"{name}.cast").outputs[0]
    output.name, output.shape, output.dtype = name, value.shape, dtype
    return output


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _half_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    with np.errstate(over="ignore"):  # an infinite weight shows in the answers, which are compared
        return ir.tensor(tensor.numpy().astype(np.float16), name=tensor.name)
