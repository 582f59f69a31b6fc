"""Computes an ONNX graph in float64, with ONNX's reference evaluator.

ONNX Runtime has no float64 convolution. The evaluator's own convolution and pooling are loops in Python that
would take minutes for a large network, so PyTorch's are used if they compute the same.

Weights stay float32 in memory and are converted for the operation that reads them; a value is released after
the last operation that reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops import op_lrn
from onnx.reference.ops.op_conv import Conv as NumpyConv
from onnx.reference.ops.op_gemm import Gemm_7 as NumpyGemm
from onnx.reference.ops.op_max_pool import MaxPool as NumpyMaxPool
from torch.nn import functional as F

from foldserve.export.verification.float64 import conv2d_in_parts, linear_in_parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

_FLOAT, _DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE


class Float64Graph:
    """The graph of an ONNX file's content, converted from float32 to float64.

    Attributes:
        largest_bytes: size of the largest tensor that `run` computed so far.
    """

    def __init__(self, content: bytes) -> None:
        model_proto = onnx.load_from_string(content)
        self._weights = {tensor.name: _to_array(tensor) for tensor in model_proto.graph.initializer}
        self._outputs = [value.name for value in model_proto.graph.output]
        without_weights = onnx.ModelProto()
        del model_proto.graph.initializer[:]
        without_weights.CopyFrom(model_proto)  # a message keeps the memory of what was deleted
        _to_float64(without_weights)
        del model_proto
        self._last_reader = _last_readers(without_weights.graph.node)
        self._evaluator = ReferenceEvaluator(without_weights, new_ops=[Conv, Gemm, MaxPool, LRN])
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
        return weight if is_narrow else _widened(weight)

    def _everything(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a branch may read: all values and all weights."""
        return {name: _widened(weight) for name, weight in self._weights.items()} | dict(values)


def _to_array(tensor: onnx.TensorProto) -> NDArray[Any]:
    array: NDArray[Any] = numpy_helper.to_array(tensor)
    return array if array.flags.writeable else array.copy()  # PyTorch warns of arrays that are not


def _widened(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _last_readers(nodes: Iterable[onnx.NodeProto]) -> dict[str, int]:
    """Return the position of the last node that reads each value, itself or in a branch."""
    return {name: index for index, node in enumerate(nodes) for name in _names_read(node)}


def _names_read(node: onnx.NodeProto) -> set[str]:
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names |= {value.name for value in graph.output}  # may be a value from outside
            for inner in graph.node:
                names |= _names_read(inner)
    return names


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


# The evaluator finds an operation by the class's name.
class Conv(NumpyConv):
    """Computes ONNX's Conv with PyTorch."""

    def _run(  # type: ignore[override]  # attributes are passed by name
        self,
        X: Any,  # noqa: N803  # ONNX's names
        W: Any,  # noqa: N803
        B: Any = None,  # noqa: N803
        **attributes: Any,
    ) -> tuple[NDArray[Any]]:
        if X.ndim != 4 or attributes["auto_pad"] not in (None, "NOTSET"):
            X, W, B = (None if array is None else _widened(array) for array in (X, W, B))  # noqa: N806
            return super()._run(X, W, B, **attributes)  # type: ignore[no-any-return, no-untyped-call]
        result = conv2d_in_parts(
            F.pad(torch.from_numpy(np.ascontiguousarray(X)), _torch_pads(attributes["pads"])),
            torch.from_numpy(W),
            None if B is None else torch.from_numpy(B),
            stride=tuple(attributes["strides"] or (1, 1)),
            dilation=tuple(attributes["dilations"] or (1, 1)),
            groups=attributes["group"] or 1,
        )
        return (result.numpy(),)


class Gemm(NumpyGemm):
    """Computes a linear layer with PyTorch, in parts if it is large."""

    def _run(  # type: ignore[override]  # as above
        self,
        a: Any,
        b: Any,
        c: Any = None,
        **attributes: Any,
    ) -> tuple[NDArray[Any]]:
        is_plain = attributes["alpha"] == attributes["beta"] == 1 and not attributes["transA"]
        if not is_plain or (c is not None and c.ndim != 1) or not b.flags.writeable:
            a, b, c = (None if array is None else _widened(array) for array in (a, b, c))
            return super()._run(a, b, c, **attributes)  # type: ignore[no-any-return, no-untyped-call]
        weight = torch.from_numpy(b) if attributes["transB"] else torch.from_numpy(b).T
        bias = None if c is None else torch.from_numpy(np.broadcast_to(c, (len(weight),)).copy())
        return (linear_in_parts(torch.from_numpy(np.ascontiguousarray(a)), weight, bias).numpy(),)


class MaxPool(NumpyMaxPool):
    """Computes ONNX's MaxPool with PyTorch."""

    def _run(self, x: Any, **attributes: Any) -> tuple[NDArray[Any]]:  # type: ignore[override]  # as above
        is_plain = attributes["auto_pad"] in (None, "NOTSET") and not attributes["ceil_mode"]
        if x.ndim != 4 or not is_plain or len(self.onnx_node.output) > 1:
            return super()._run(x, **attributes)  # type: ignore[no-any-return, no-untyped-call]
        result = F.max_pool2d(
            F.pad(torch.tensor(x), _torch_pads(attributes["pads"]), value=-np.inf),
            tuple(attributes["kernel_shape"]),
            stride=tuple(attributes["strides"] or (1, 1)),
            dilation=tuple(attributes["dilations"] or (1, 1)),
        )
        return (result.numpy(),)


class LRN(op_lrn.LRN):
    """Computes ONNX's LRN; the evaluator's has sums for as many channels as there are images."""

    def _run(
        self, x: Any, alpha: Any = None, beta: Any = None, bias: Any = None, size: Any = None
    ) -> tuple[NDArray[Any]]:
        before = (size - 1) // 2
        around = np.pad(x * x, [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)])
        squares = sum(around[:, start : start + x.shape[1]] for start in range(size))
        return (x / (bias + alpha / size * squares) ** beta,)


def _torch_pads(pads: Any) -> tuple[int, ...]:
    """Convert ONNX's [top, left, bottom, right] to PyTorch's order: last axis first, both ends together."""
    top, left, bottom, right = (0, 0, 0, 0) if pads is None else pads
    return (left, right, top, bottom)
