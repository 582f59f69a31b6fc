"""Refuses networks whose weights do not fit into one ONNX file, before any work is done for them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx

from foldserve.artifact.format import MAX_MODEL_BYTES
from foldserve.export.errors import SourceError

if TYPE_CHECKING:
    from torch import nn

# Kept for the graph and the labels.
_GRAPH_BYTES = 2**20
_GIB = 2**30


def check_module_size(network: nn.Module, name: str) -> None:
    """Check that the weights of ``network``, in float32, fit into one file.

    Raises:
        SourceError: they do not.
    """
    tensors = {id(tensor): tensor for tensor in network.state_dict(keep_vars=True).values()}  # tied ones once
    _check(sum(4 * getattr(tensor, "numel", int)() for tensor in tensors.values()), name)


def check_file_size(model_proto: onnx.ModelProto, name: str) -> None:
    """Check that the weights of ``model_proto`` fit into one file.

    Those in files beside it count too, and those that it makes of one number (ConstantOfShape).

    Raises:
        SourceError: they do not.
    """
    tensors = {tensor.name: tensor for tensor in model_proto.graph.initializer}
    made = [
        tensors[node.input[0]]
        for node in model_proto.graph.node
        if node.op_type == "ConstantOfShape" and node.input[0] in tensors
    ]
    _check(sum(map(_byte_count, tensors.values())) + sum(map(_made_byte_count, made)), name)


def _byte_count(tensor: onnx.TensorProto) -> int:
    if tensor.data_type == onnx.TensorProto.STRING:
        return 0
    return math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _made_byte_count(sides: onnx.TensorProto) -> int:
    """Return the size in float32 of what a ConstantOfShape makes of ``sides``."""
    if sides.data_location == onnx.TensorProto.EXTERNAL:
        return 0
    return 4 * math.prod(max(0, int(side)) for side in onnx.numpy_helper.to_array(sides).reshape(-1))


def _check(count: int, name: str) -> None:
    if count > MAX_MODEL_BYTES - _GRAPH_BYTES:
        raise SourceError(
            f"{name} has {count / _GIB:.2f} GiB of weights; an ONNX file, one protobuf message, holds "
            "at most 2 GiB: export a smaller variant of the network"
        )
