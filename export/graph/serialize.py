"""Serialises a folded graph into a ``model.onnx`` whose bytes depend only on the network.

Exporters leave source paths, stack traces and their own version in the file. All of it is removed, so that a
checkpoint gives the same bytes from any folder, in any process, on any day.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from foldserve.artifact.format import LOGITS, PROBABILITIES
from foldserve.export.errors import TraceError
from foldserve.export.graph.model_bytes import parts_with_weights
from foldserve.export.graph.simplify import free_name, unused_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BATCH = "batch"
# IR 10 is the newest that ONNX Runtime 1.20 reads; nothing here needs a later one.
IR_VERSION = 10
# Weights from this size on are kept out of the checks. Smaller constants may be shapes, whose values count.
LARGE_WEIGHT_BYTES = 64 * 1024


def add_outputs(graph: ir.Graph, temperature: float = 1.0) -> None:
    """Name the output `LOGITS`, and add `PROBABILITIES`: softmax over classes of logits / ``temperature``."""
    (logits,) = graph.outputs
    for name in (LOGITS, PROBABILITIES):
        free_name(graph, name)
    logits.name = LOGITS
    logits.type = ir.TensorType(ir.DataType.FLOAT)
    scaled = logits if temperature == 1.0 else _divide(graph, logits, temperature)
    softmax = ir.node("Softmax", [scaled], {"axis": 1}, name=unused_name(graph, "softmax"))
    softmax.outputs[0].name = PROBABILITIES
    softmax.outputs[0].shape = logits.shape
    softmax.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.append(softmax)
    graph.outputs.append(softmax.outputs[0])


def _divide(graph: ir.Graph, logits: ir.Value, temperature: float) -> ir.Value:
    name = unused_name(graph, "temperature")
    divisor = ir.Value(
        name=name,
        shape=ir.Shape([]),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=ir.tensor(np.float32(temperature), name=name),
    )
    graph.register_initializer(divisor)
    division = ir.node("Div", [logits, divisor], name=unused_name(graph, "calibrated"))
    scaled = division.outputs[0]
    scaled.name = unused_name(graph, "calibrated_logits")
    scaled.shape, scaled.type = logits.shape, ir.TensorType(ir.DataType.FLOAT)
    graph.append(division)
    return scaled


def serialize(model: ir.Model, props: Mapping[str, str]) -> bytes:
    """Return the bytes of a file that holds ``model`` and ``props``: see `serialize_in_parts`."""
    return b"".join(serialize_in_parts(model, props))


def serialize_in_parts(model: ir.Model, props: Mapping[str, str]) -> Sequence[bytes | memoryview]:
    """Return, in parts, a checked file that holds ``model`` and ``props`` as metadata, nothing else.

    Equal models give equal bytes. Large weights are copied once, from ``model`` into the file: they take no
    part in the checks, which only need their types and shapes.

    Raises:
        TraceError: the result is not valid ONNX, or breaks the artifact's contract.
    """
    passes.RemoveUnusedNodesPass()(model)
    _strip(model)
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape([BATCH, *list(value.shape)[1:]])
    model_proto, weights = to_proto_and_weights(model)
    model_proto.ir_version = IR_VERSION
    model_proto.producer_name = "foldserve"
    model_proto.producer_version = ""
    del model_proto.graph.value_info[:]
    del model_proto.metadata_props[:]
    onnx.helper.set_model_props(model_proto, dict(props))
    check_model(with_inputs_for(model_proto, weights))
    return parts_with_weights(model_proto, weights)


def check_model(model_proto: onnx.ModelProto) -> None:
    """Check the file against ONNX's rules and the artifact's contract.

    Raises:
        TraceError: it breaks one of them.
    """
    try:
        onnx.checker.check_model(model_proto)  # its full check would infer shapes too, less strictly
        onnx.shape_inference.infer_shapes(model_proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise TraceError(f"the exported graph is not valid ONNX: {str(error).splitlines()[0]}") from error
    everywhere = {node.op_type for node in _all_nodes(model_proto)}
    # In a branch an Identity may be needed, since the branch's output must be made inside it.
    at_top = {node.op_type for node in model_proto.graph.node}
    left = sorted(everywhere & {"BatchNormalization", "Dropout"} | at_top & {"Identity"})
    if left:
        raise TraceError(
            f"the exported graph still holds {', '.join(left)}; this is a bug in foldserve, please report it"
        )


def to_proto_and_weights(model: ir.Model) -> tuple[onnx.ModelProto, Mapping[str, ir.TensorProtocol]]:
    """Convert ``model`` into a message without its large weights, and return these by name."""
    weights = _large_weights(model.graph)
    return _to_proto_without(model, weights), weights


def _large_weights(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    return {
        name: value.const_value
        for name, value in graph.initializers.items()
        if value.const_value is not None
        and value.const_value.dtype != ir.DataType.STRING
        and value.const_value.nbytes >= LARGE_WEIGHT_BYTES
    }


def _to_proto_without(model: ir.Model, weights: Mapping[str, ir.TensorProtocol]) -> onnx.ModelProto:
    """Convert ``model``; of ``weights`` only name, type and shape. ``model`` is as before afterwards."""
    initializers = model.graph.initializers
    try:
        for name, tensor in weights.items():
            initializers[name].const_value = ir.ExternalTensor(
                "", None, None, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )
        model_proto: onnx.ModelProto = ir.to_proto(model)
    finally:
        for name, tensor in weights.items():
            initializers[name].const_value = tensor
    for tensor_proto in model_proto.graph.initializer:
        if tensor_proto.name in weights:
            del tensor_proto.external_data[:]
            tensor_proto.ClearField("data_location")
    return model_proto


def with_inputs_for(model_proto: onnx.ModelProto, weights: Mapping[str, object]) -> onnx.ModelProto:
    """Return a copy of a file without ``weights``, which it takes as inputs instead."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model_proto)
    del copy.graph.initializer[:]
    inputs = {value.name for value in model_proto.graph.input}  # old files list all weights there
    for tensor in model_proto.graph.initializer:
        if tensor.name in weights and tensor.name in inputs:
            continue
        if tensor.name in weights:
            copy.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
        else:
            copy.graph.initializer.append(tensor)
    return copy


def _all_nodes(model_proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return every node, including those of branches and functions."""
    nodes = []
    waiting = [
        *model_proto.graph.node,
        *(node for function in model_proto.functions for node in function.node),
    ]
    while waiting:
        node = waiting.pop()
        nodes.append(node)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                waiting.extend(graph.node)
    return nodes


def _strip(model: ir.Model) -> None:
    passes.ClearMetadataAndDocStringPass()(model)
    graph = model.graph
    graph.name = "network"
    graph.metadata_props.clear()
    graph.doc_string = None
    values = {
        *graph.inputs,
        *graph.initializers.values(),
        *(output for node in graph.all_nodes() for output in node.outputs),
    }
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
    model.metadata_props.clear()
    model.doc_string = None
    model.opset_imports.pop("pkg.onnxscript.torch_lib.common", None)
