"""Computes an ONNX graph in float64, with ONNX's reference evaluator.

ONNX Runtime has no float64 convolution. `float64_nodes` replaces what the evaluator computes in loops of
Python.

Weights stay float32 in memory and are converted for the operation that reads them; a value is released after
the last operation that reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from foldserve.export.sources.onnx.float64_nodes import FASTER, Conv, Gemm, widened
from foldserve.export.sources.onnx.graph_reads import names_read

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

_FLOAT, _DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE


class Float64Graph:
    """The graph of an ONNX file's content, converted from float32 to float64.

    Attributes:
        largest_bytes: size of the largest tensor that `run` computed so far.
    """

    def __init__(
        self, content: bytes, exact_weights: Mapping[str, NDArray[np.float64]] | None = None
    ) -> None:
        """Read ``content``; ``exact_weights`` take the place of those of the same names."""
        model_proto = onnx.load_from_string(content)
        self._weights = {tensor.name: _to_array(tensor) for tensor in model_proto.graph.initializer}
        self._weights |= exact_weights or {}
        self._outputs = [value.name for value in model_proto.graph.output]
        without_weights = onnx.ModelProto()
        del model_proto.graph.initializer[:]
        without_weights.CopyFrom(model_proto)  # a message keeps the memory of what was deleted
        _to_float64(without_weights)
        del model_proto
        self._last_reader = _last_readers(without_weights.graph.node)
        self._evaluator = ReferenceEvaluator(without_weights, new_ops=FASTER)
        self.largest_bytes = 0

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Return the first output. Operations that the evaluator lacks raise errors of many types."""
        values: dict[str, Any] = {"": None, **feeds}
        with np.errstate(all="ignore"):
            for index, node in enumerate(self._evaluator.rt_nodes_):
                context = {"context": self._everything(values)} if node.need_context() else {}
                is_narrow = isinstance(node, Conv | Gemm)  # they convert, in parts
                inputs = [self._value(values, name, is_narrow=is_narrow) for name in node.input]
                computed = dict(zip(node.output, node.run(*inputs, **context), strict=False))
                sizes = [value.nbytes for value in computed.values() if isinstance(value, np.ndarray)]
                self.largest_bytes = max([self.largest_bytes, *sizes])
                values |= computed
                for name in {*node.input, *node.output}:
                    if name and self._last_reader.get(name, -1) <= index and name not in self._outputs:
                        values.pop(name, None)
        output: NDArray[Any] = self._value(values, self._outputs[0])
        return output

    def _value(self, values: Mapping[str, Any], name: str, *, is_narrow: bool = False) -> Any:
        if name in values:
            return values[name]
        weight = self._weights[name]
        return weight if is_narrow else widened(weight)

    def _everything(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a branch may read: all values and all weights."""
        return {name: widened(weight) for name, weight in self._weights.items()} | dict(values)


def _to_array(tensor: onnx.TensorProto) -> NDArray[Any]:
    array: NDArray[Any] = numpy_helper.to_array(tensor)
    return array if array.flags.writeable else array.copy()  # PyTorch warns of arrays that are not


def _last_readers(nodes: Iterable[onnx.NodeProto]) -> dict[str, int]:
    """Return the position of the last node that reads each value, itself or in a branch."""
    return {name: index for index, node in enumerate(nodes) for name in names_read(node)}


def _to_float64(model_proto: onnx.ModelProto) -> None:
    graph = model_proto.graph
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == _FLOAT:
            value.type.tensor_type.elem_type = _DOUBLE
    del graph.value_info[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _FLOAT:
                attribute.i = _DOUBLE


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == _FLOAT:
        array = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
