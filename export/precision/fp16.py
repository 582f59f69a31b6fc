"""Converts a folded file to fp16: weights and arithmetic in float16, inputs and outputs as before.

The normalisation stays in float32, since pixel and mean cancel there, and so does the softmax; everything
between is float16. Its significand has 11 bits, so each value is rounded by up to 1 in 2048, and values above
65,504 overflow. `foldserve.export.precision.choose` measures whether that is good enough.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from foldserve.artifact.format import LOGITS, PROBABILITIES
from foldserve.export.errors import PrecisionError, TraceError
from foldserve.export.graph.normalise import is_normalisation
from foldserve.export.graph.serialize import serialize

_FLOAT, _FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16


def to_fp16(content: bytes) -> bytes:
    """Convert ``content``, an exported ``model.onnx`` in fp32, to fp16.

    Raises:
        PrecisionError: it has an operator that ONNX does not define for float16.
    """
    model_proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(content))
    props = {entry.key: entry.value for entry in model_proto.metadata_props}
    model = ir.from_proto(model_proto)
    (probabilities,) = (value for value in model.graph.outputs if value.name == PROBABILITIES)
    softmax = _producer(probabilities)
    (logits,) = (value for value in model.graph.outputs if value.name == LOGITS)
    # The softmax, and the division by the temperature before it.
    ending = [softmax] if softmax.inputs[0] is logits else [_producer(_input(softmax)), softmax]
    body = [node for node in model.graph if node not in ending and not is_normalisation(node)]
    _cast_inputs(model.graph, body)
    for node in body:
        _convert(node)
    _cast_logits(model.graph, logits, ending[0])
    try:
        return serialize(model, props)
    except TraceError as error:
        raise PrecisionError(f"the network cannot be computed in fp16: {error}") from error


def _cast_inputs(graph: ir.Graph, body: list[ir.Node]) -> None:
    """Cast the float32 values that ``body`` reads from earlier nodes to float16."""
    inside = set(body)
    casts: dict[ir.Value, ir.Value] = {}
    for node in body:
        for index, value in enumerate(node.inputs):
            if value is None or value.producer() in inside or value.is_initializer() or value.dtype != _FLOAT:
                continue
            if value not in casts:
                casts[value] = _cast(value, _FLOAT16, f"{value.name}.half")
                graph.insert_before(body[0], [_producer(casts[value])])
            node.replace_input_with(index, casts[value])


def _convert(node: ir.Node) -> None:
    """Convert a node's float32 constants, attributes and outputs to float16."""
    for value in node.inputs:
        if value is None or not value.is_initializer() or value.dtype != _FLOAT:
            continue
        assert value.const_value is not None
        value.const_value = _fp16_tensor(value.const_value)
        value.dtype = _FLOAT16
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _FLOAT:
            node.attributes[name] = ir.AttrTensor(name, _fp16_tensor(attribute.as_tensor()))
        if node.op_type == "Cast" and name == "to" and attribute.as_int() == _FLOAT:
            node.attributes[name] = ir.AttrInt64(name, _FLOAT16)
    for output in node.outputs:
        if output.dtype == _FLOAT:
            output.dtype = _FLOAT16


def _cast_logits(graph: ir.Graph, logits: ir.Value, reader: ir.Node) -> None:
    logits.name = f"{LOGITS}.half"
    floats = _cast(logits, _FLOAT, LOGITS)
    graph.insert_before(reader, [_producer(floats)])
    reader.replace_input_with(0, floats)
    graph.outputs[list(graph.outputs).index(logits)] = floats


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
    output = ir.node("Cast", [value], {"to": dtype}, name=f"{name}.cast").outputs[0]
    output.name, output.shape, output.dtype = name, value.shape, dtype
    return output


def _input(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _fp16_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    with np.errstate(over="ignore"):  # an infinite weight shows in the outputs, which are compared
        return ir.tensor(tensor.numpy().astype(np.float16), name=tensor.name)
