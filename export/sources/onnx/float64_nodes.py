"""Computes single ONNX operations in float64 for ONNX's reference evaluator.

The evaluator's own convolution and pooling are loops in Python that would take minutes for a large network,
so PyTorch's are used if they compute the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx.reference.ops import op_lrn
from onnx.reference.ops.op_batch_normalization import BatchNormalization_14
from onnx.reference.ops.op_conv import Conv as NumpyConv
from onnx.reference.ops.op_gemm import Gemm_7 as NumpyGemm
from onnx.reference.ops.op_max_pool import MaxPool as NumpyMaxPool
from onnx.reference.ops.op_pool_common import CommonPool
from onnx.reference.ops.op_relu import Relu as NumpyRelu
from torch.nn import functional as F

from foldserve.export.verification.float64 import conv2d_in_parts, linear_in_parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


def widened(array: NDArray[Any]) -> NDArray[Any]:
    """Return float64 for float32, and any other array as it is."""
    return array.astype(np.float64) if array.dtype == np.float32 else array


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
            X, W, B = (None if array is None else widened(array) for array in (X, W, B))  # noqa: N806
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
            a, b, c = (None if array is None else widened(array) for array in (a, b, c))
            return super()._run(a, b, c, **attributes)  # type: ignore[no-any-return, no-untyped-call]
        weight = torch.from_numpy(b) if attributes["transB"] else torch.from_numpy(b).T
        bias = None if c is None else torch.from_numpy(np.broadcast_to(c, (len(weight),)).copy())
        return (linear_in_parts(torch.from_numpy(np.ascontiguousarray(a)), weight, bias).numpy(),)


class MaxPool(NumpyMaxPool):
    """Computes ONNX's MaxPool with PyTorch."""

    def _run(self, x: Any, **attributes: Any) -> tuple[NDArray[Any]]:  # type: ignore[override]  # as above
        if not _is_plain_pooling(x, attributes) or len(self.onnx_node.output) > 1:
            return super()._run(x, **attributes)  # type: ignore[no-any-return, no-untyped-call]
        windows = _windows(x, attributes)
        result = F.max_pool2d(
            F.pad(torch.tensor(x), windows.around, value=-np.inf),
            windows.kernel,
            stride=windows.strides,
            dilation=windows.dilations,
        )
        return (result.numpy(),)


class AveragePool(CommonPool):
    """Computes ONNX's AveragePool with PyTorch."""

    def _run(  # type: ignore[override]  # as above
        self, x: Any, count_include_pad: Any = None, **attributes: Any
    ) -> tuple[NDArray[Any]]:
        is_dilated = any(step != 1 for step in attributes.get("dilations") or ())
        if is_dilated or not _is_plain_pooling(x, attributes):
            result: tuple[NDArray[Any]] = super()._run("AVG", count_include_pad, x, **attributes)  # type: ignore[no-untyped-call]
            return result
        windows = _windows(x, attributes)
        image = torch.from_numpy(np.ascontiguousarray(x))
        # PyTorch counts a border on all sides or on none, and has the same border on both ends of a side.
        counted = F.pad(
            torch.ones(1, 1, *x.shape[2:], dtype=image.dtype),
            windows.pads,
            value=float(bool(count_include_pad)),
        )
        sums, counts = (
            F.avg_pool2d(part, windows.kernel, windows.strides, divisor_override=1)
            for part in (F.pad(image, windows.around), F.pad(counted, windows.beyond))
        )
        return (sums.div_(counts).numpy(),)


class BatchNormalization(BatchNormalization_14):
    """Computes ONNX's BatchNormalization with PyTorch, without copies of what it reads."""

    def _run(  # type: ignore[override]  # as above
        self, x: Any, scale: Any, bias: Any, mean: Any, var: Any, **attributes: Any
    ) -> tuple[NDArray[Any], ...]:
        numbers = (scale, bias, mean, var)
        if attributes.get("training_mode") or any(given.dtype != x.dtype for given in numbers):
            return super()._run(x, *numbers, **attributes)  # type: ignore[no-any-return, no-untyped-call]
        image, scale, bias, mean, var = (
            torch.from_numpy(np.ascontiguousarray(each)) for each in (x, *numbers)
        )
        return (F.batch_norm(image, mean, var, scale, bias, eps=attributes["epsilon"]).numpy(),)


class Relu(NumpyRelu):
    """Computes ONNX's Relu; the evaluator's copies its result."""

    def _run(self, x: Any) -> tuple[NDArray[Any]]:
        return (np.maximum(x, 0),)


class LRN(op_lrn.LRN):
    """Computes ONNX's LRN; the evaluator's has sums for as many channels as there are images."""

    def _run(
        self, x: Any, alpha: Any = None, beta: Any = None, bias: Any = None, size: Any = None
    ) -> tuple[NDArray[Any]]:
        before = (size - 1) // 2
        divisors = np.zeros_like(x)
        for channel in range(x.shape[1]):
            around = x[:, max(0, channel - before) : channel + size - before]
            np.einsum("nc...,nc...->n...", around, around, out=divisors[:, channel])
        divisors *= alpha / size
        divisors += bias
        np.power(divisors, beta, out=divisors)
        return (np.divide(x, divisors, out=divisors),)


@dataclass(frozen=True)
class _Windows:
    """Where a pooling's windows lie, in PyTorch's order of sides: last one first, both ends together.

    Attributes:
        pads: the border that the file asks for.
        beyond: what the last window reaches beyond that border, if the file rounds their number up.
        kernel: [height, width], as are ``strides`` and ``dilations``.
    """

    pads: tuple[int, ...]
    beyond: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]

    @property
    def around(self) -> tuple[int, ...]:
        """The border and what is beyond it."""
        return tuple(pad + more for pad, more in zip(self.pads, self.beyond, strict=True))


def _is_plain_pooling(x: Any, attributes: Mapping[str, Any]) -> bool:
    return x.ndim == 4 and attributes["auto_pad"] in (None, "NOTSET")


def _windows(x: NDArray[Any], attributes: Mapping[str, Any]) -> _Windows:
    """Read where the windows of a pooling of ``x`` [N, C, H, W] lie.

    With ``ceil_mode`` one more window may begin in the image or in the border before it, never behind.
    """
    kernel = tuple(attributes["kernel_shape"])
    strides = tuple(attributes["strides"] or (1, 1))
    dilations = tuple(attributes.get("dilations") or (1, 1))
    pads = tuple(attributes["pads"] or (0, 0, 0, 0))
    beyond = [0, 0]
    if attributes["ceil_mode"]:
        for axis in range(2):
            side = x.shape[2 + axis] + pads[axis]
            reach = dilations[axis] * (kernel[axis] - 1) + 1
            last = -(-(side + pads[2 + axis] - reach) // strides[axis]) * strides[axis]
            last -= strides[axis] if last >= side else 0
            beyond[axis] = max(0, last + reach - side - pads[2 + axis])
    return _Windows(_torch_pads(pads), (0, beyond[1], 0, beyond[0]), kernel, strides, dilations)


def _torch_pads(pads: Any) -> tuple[int, ...]:
    """Convert ONNX's [top, left, bottom, right] to PyTorch's order: last axis first, both ends together."""
    top, left, bottom, right = (0, 0, 0, 0) if pads is None else pads
    return (left, right, top, bottom)


# Operations that take the place of the evaluator's own.
FASTER = [Conv, Gemm, MaxPool, AveragePool, BatchNormalization, Relu, LRN]
