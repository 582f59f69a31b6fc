"""Quantises a folded file to int8: weights and the inputs of layers as one byte per number (static QDQ).

A real number x is stored as q = round(x / scale) + zero_point. Weights are int8, symmetric, with one scale
per output channel; activations are uint8, with one scale per tensor, from the least and the greatest value
seen on calibration images; sums are int32. In the file a layer stands between DequantizeLinear and
QuantizeLinear nodes, and ONNX Runtime computes the whole group in integers. Activations are uint8 because on
CPUs their products with int8 weights are one instruction (VNNI); int8 activations were measured to be equally
accurate (bit for bit) and 0.75 to 1 times as fast.

`foldserve.export.precision.sensitivity` decides which layers to leave in float.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from foldserve.artifact.format import IMAGE
from foldserve.export.errors import PrecisionError, TraceError
from foldserve.export.graph.serialize import serialize
from foldserve.export.verification.reference import batch_size_of
from foldserve.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from numpy.typing import NDArray

    Ranges = Mapping[str, tuple[np.float32, np.float32]]

# Layers with weights, and operations that only pass on their values. Elementwise arithmetic stays in float:
# another rounding to a byte costs accuracy and saves almost no time.
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_PASSING = ("MaxPool", "Relu", "Clip", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")


def layer_names(content: bytes) -> dict[str, str]:
    """Return the layers that can be quantised, in the order of computation: ONNX node name -> layer name."""
    model_proto = onnx.load_from_string(content)
    stored = {tensor.name for tensor in model_proto.graph.initializer}
    return {
        node.name: node.input[1].removesuffix(".weight")
        for node in model_proto.graph.node
        if node.op_type in LAYERS and not node.domain and node.input[1] in stored
    }


def activation_ranges(
    content: bytes, images: NDArray[np.uint8], on_progress: Callable[[int], None] = lambda _: None
) -> Ranges:
    """Return the least and greatest value of every float tensor in the file over calibration ``images``.

    Zero is always in the range, since padding needs an exact zero.

    Raises:
        PrecisionError: a tensor is not finite.
    """
    model_proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(content))
    outputs = {value.name for value in model_proto.graph.output}
    inner = [
        value
        for value in model_proto.graph.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and value.name not in outputs
    ]
    model_proto.graph.output.extend(inner)
    session = Session(model_proto.SerializeToString(), device="cpu")
    names = [value.name for value in inner] + sorted(outputs)
    low = np.zeros(len(names), dtype=np.float32)
    high = np.zeros(len(names), dtype=np.float32)
    batch_size = min(32, batch_size_of(images))  # all tensors of the network are in memory at once
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        tensors = session.run(names, {IMAGE: batch})
        low = np.minimum(low, [tensor.min() for tensor in tensors])
        high = np.maximum(high, [tensor.max() for tensor in tensors])
        on_progress(len(batch))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise PrecisionError("a value inside the network is not finite on the calibration images")
    return {name: (low[index], high[index]) for index, name in enumerate(names)}


def quantize(content: bytes, ranges: Ranges, nodes: Collection[str]) -> bytes:
    """Quantise the layers at ``nodes`` of ``content`` to int8; equal arguments give equal bytes.

    Raises:
        PrecisionError: the result is not a valid file.
    """
    model_proto = onnx.load_from_string(content)
    props = {entry.key: entry.value for entry in model_proto.metadata_props}
    passing = [node.name for node in model_proto.graph.node if node.op_type in _PASSING]
    quantizer = QDQQuantizer(
        onnx.shape_inference.infer_shapes(model_proto),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, dict(ranges)),
        nodes_to_quantize=[*nodes, *passing],
        nodes_to_exclude=[],
        op_types_to_quantize=[*LAYERS, *_PASSING],
        extra_options={},
    )
    quantizer.quantize_model()
    model = ir.from_proto(quantizer.model.model)
    _keep_logits_in_float(model.graph)
    model.graph.sort()  # the new nodes are at the end, after those that read them
    for domain in [domain for domain in model.opset_imports if domain]:
        model.opset_imports.pop(domain)
    try:
        return serialize(model, props)
    except TraceError as error:
        raise PrecisionError(f"the network cannot be quantised: {error}") from error


def _keep_logits_in_float(graph: ir.Graph) -> None:
    """Remove the rounding of the last layer's output, which no integer layer reads.

    On a LeNet it was the largest error of all: steps of 0.1 at logits of 17, and larger logits clipped.
    """
    for index, output in enumerate(graph.outputs):
        dequantize = output.producer()
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        quantize_node = dequantize.inputs[0].producer() if dequantize.inputs[0] is not None else None
        if quantize_node is None or quantize_node.inputs[0] is None:
            continue
        unrounded, name = quantize_node.inputs[0], output.name
        output.name = f"{name}.rounded"
        output.replace_all_uses_with(unrounded, replace_graph_outputs=True)
        assert graph.outputs[index] is unrounded
        unrounded.name, unrounded.shape, unrounded.type = name, output.shape, output.type
        graph.remove([dequantize, quantize_node], safe=True)
