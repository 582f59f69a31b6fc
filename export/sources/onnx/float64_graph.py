"""Computes an ONNX graph in float64, with ONNX's reference evaluator.

ONNX Runtime has no float64 convolution. `float64_nodes` replaces what the evaluator computes in loops of
Python.

Weights stay float32 in memory and are converted for the operation that reads them; what no image reaches is
computed just before it is read, and a value is released after the last operation that reads it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from foldserve.export.graph.weights_apart import Weights, array_of
from foldserve.export.sources.onnx.float64_nodes import FASTER, Conv, Gemm, widened
from foldserve.export.sources.onnx.graph_reads import names_read
from foldserve.export.sources.onnx.node_order import constants_when_read

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

_FLOAT, _DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE
# Entries of an array whose values may say how large a result is: sides, repetitions, borders.
_SIDES = 1024


class TooLargeError(Exception):
    """A result would be larger than allowed, or nobody knows how large before it is computed."""


class Float64Graph:
    """The graph of an ONNX file, converted from float32 to float64.

    Attributes:
        largest_bytes: size of the largest tensor that `run` computed so far; views do not count.
    """

    def __init__(
        self,
        model: bytes | onnx.ModelProto,
        exact_weights: Mapping[str, NDArray[np.float64]] | None = None,
        *,
        weights: Weights | None = None,
        most_bytes: int | None = None,
    ) -> None:
        """Convert ``model``.

        Args:
            model: an ONNX file, or the message in it, which is not changed.
            exact_weights: take the place of weights of the same names.
            weights: weights that the message has without their values.
            most_bytes: the largest result of an operation that `run` computes; None for any.
        """
        self._most_bytes = most_bytes
        self._in_files = weights
        given = onnx.load_from_string(model) if isinstance(model, bytes) else model
        self._weights = {
            tensor.name: _writable(array_of(tensor, weights or Weights()))
            for tensor in given.graph.initializer
        }
        self._weights |= exact_weights or {}
        self._outputs = [value.name for value in given.graph.output]
        without_weights = onnx.ModelProto()
        without_weights.CopyFrom(given)
        del without_weights.graph.initializer[:]
        _to_float64(without_weights)
        graph = without_weights.graph
        inputs = {value.name for value in graph.input} - self._weights.keys()
        ordered = onnx.GraphProto(node=constants_when_read(list(graph.node), inputs))
        del graph.node[:]
        graph.node.extend(ordered.node)
        self._last_reader = _last_readers(without_weights.graph.node)
        self._opset_imports = list(without_weights.opset_import)
        self._evaluator = ReferenceEvaluator(without_weights, new_ops=FASTER)
        self.largest_bytes = 0

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Return the first output.

        Raises:
            TooLargeError: a result would have more than ``most_bytes``; it is not computed.
            Exception: of many types, for operations that the evaluator lacks.
        """
        values: dict[str, Any] = {"": None, **feeds}
        with np.errstate(all="ignore"):
            for index, node in enumerate(self._evaluator.rt_nodes_):
                context = {"context": self._everything(values)} if node.need_context() else {}
                is_narrow = isinstance(node, Conv | Gemm)  # they convert, in parts
                inputs = [self._value(values, name, is_narrow=is_narrow) for name in node.input]
                if self._most_bytes is not None:
                    _check_size(node.onnx_node, inputs, self._opset_imports, self._most_bytes)
                computed = dict(zip(node.output, node.run(*inputs, **context), strict=False))
                sizes = [value.nbytes for value in computed.values() if _is_new(value, inputs)]
                self.largest_bytes = max([self.largest_bytes, *sizes])
                values |= computed
                for name in {*node.input, *node.output}:
                    if name and self._last_reader.get(name, -1) <= index and name not in self._outputs:
                        values.pop(name, None)
        output: NDArray[Any] = self._value(values, self._outputs[0])
        if self._in_files is not None:
            self._in_files.release()  # they were read in parts; the next images need memory first
        return output

    def _value(self, values: Mapping[str, Any], name: str, *, is_narrow: bool = False) -> Any:
        if name in values:
            return values[name]
        weight = self._weights[name]
        return weight if is_narrow else widened(weight)

    def _everything(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a branch may read: all values and all weights."""
        return {name: widened(weight) for name, weight in self._weights.items()} | dict(values)


def _check_size(
    node: onnx.NodeProto,
    inputs: Iterable[Any],
    opset_imports: list[onnx.OperatorSetIdProto],
    most_bytes: int,
) -> None:
    """Infer the sizes of what ``node`` would compute from ``inputs``, and refuse what is too large."""
    given = {name: np.asarray(array) for name, array in zip(node.input, inputs, strict=True) if name}
    types = {
        name: helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given.items()
    }
    values = {
        name: numpy_helper.from_array(array, name) for name, array in given.items() if array.size <= _SIDES
    }
    opset = next(entry.version for entry in opset_imports if entry.domain == node.domain)
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    inferred = onnx.shape_inference.infer_node_outputs(
        schema, node, types, values, opset_imports=opset_imports
    )
    for name, result in inferred.items():
        sides = result.tensor_type.shape.dim
        is_known = result.tensor_type.HasField("shape") and all(side.HasField("dim_value") for side in sides)
        count = math.prod(side.dim_value for side in sides)
        if not is_known or count * np.dtype(np.float64).itemsize > most_bytes:
            raise TooLargeError(f"{name} would be larger than {most_bytes:,} bytes")


def _is_new(value: Any, inputs: Iterable[Any]) -> bool:
    """Tell whether ``value`` is an array with memory of its own, not a view of one of ``inputs``."""
    arrays = [given for given in inputs if isinstance(given, np.ndarray)]
    return isinstance(value, np.ndarray) and not any(np.may_share_memory(value, given) for given in arrays)


def _writable(array: NDArray[Any]) -> NDArray[Any]:
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
