"""Computes single ONNX operations in float64 for ONNX's reference evaluator.

The evaluator's own convolution and pooling are loops in Python that would take minutes for a large network,
so PyTorch's are used if they compute the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx.reference.ops import op_lrn
from onnx.reference.ops.op_conv import Conv as NumpyConv
from onnx.reference.ops.op_gemm import Gemm_7 as NumpyGemm
from onnx.reference.ops.op_max_pool import MaxPool as NumpyMaxPool
from torch.nn import functional as F

from foldserve.export.verification.float64 import conv2d_in_parts, linear_in_parts

if TYPE_CHECKING:
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
