"""Computes an ONNX graph in float64, with ONNX's reference evaluator.

ONNX Runtime has no float64 convolution. The evaluator's own convolution and pooling are loops in Python that
would take minutes for a large network, so PyTorch's are used if they compute the same.
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
from onnx.reference.ops.op_max_pool import MaxPool as NumpyMaxPool
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_FLOAT, _DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE


class Float64Graph:
    """The graph of an ONNX file's content, converted from float32 to float64."""

    def __init__(self, content: bytes) -> None:
        exact = _to_float64(onnx.load_from_string(content))
        self._evaluator = ReferenceEvaluator(exact, new_ops=[Conv, MaxPool, LRN])

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Return the first output. Operations that the evaluator lacks raise errors of many types."""
        with np.errstate(all="ignore"):
            outputs: list[NDArray[Any]] = self._evaluator.run(None, dict(feeds))  # type: ignore[assignment]  # covers sequences and maps
        return outputs[0]


def _to_float64(model_proto: onnx.ModelProto) -> onnx.ModelProto:
    graph = model_proto.graph
    for tensor in graph.initializer:
        _widen(tensor)
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
    return model_proto


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
            return super()._run(X, W, B, **attributes)  # type: ignore[no-any-return, no-untyped-call]
        result = F.conv2d(
            F.pad(torch.tensor(X), _torch_pads(attributes["pads"])),
            torch.tensor(W),
            None if B is None else torch.tensor(B),
            stride=tuple(attributes["strides"] or (1, 1)),
            dilation=tuple(attributes["dilations"] or (1, 1)),
            groups=attributes["group"] or 1,
        )
        return (result.numpy(),)


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
