"""Reads the layers that a batch norm can be folded into, and the padding in between.

Each function declines by raising `DeclinedError` with the reason. Doubtful cases are declined: a fold that is
not made costs a multiplication, a wrong one changes the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from foldserve.export.graph.fold_bn import ChannelAffine, Layout
    from foldserve.export.graph.weights import Float64Initializers


class DeclinedError(Exception):
    """A fold would not be exact; the message says why. It never leaves the package."""


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer whose weights may be changed: ``weight`` as stored, ``bias`` [out]."""

    node: ir.Node
    name: str
    layout: Layout
    groups: int
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]


def read_layer(node: ir.Node, weights: Float64Initializers, where: str) -> Layer:
    """Return ``node`` as a layer whose weights may be changed; ``where`` is for the message.

    Raises:
        DeclinedError: it is another operation, or its weights are computed or shared.
    """
    layout = _layout(node)
    if layout is None:
        raise DeclinedError(f"{node_name(node)} {where} is neither convolution nor linear")
    value = node.inputs[1]
    weight = weights.read(value)
    if value is None or weight is None:
        raise DeclinedError(f"the weight of {node_name(node)} {where} is computed, not stored")
    name = str(value.name).removesuffix(".weight")
    use_count = len(value.uses()) + value.is_graph_output()
    if use_count > 1:
        raise DeclinedError(f"the weight of {name} {where} is used {use_count} times")
    groups = _int(node, "group", 1)
    out = weight.shape[1] * groups if layout == "conv_transpose" else weight.shape[layout == "gemm"]
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    if bias_value is None:
        bias = np.zeros(out)
    else:
        stored = weights.read(bias_value)
        if stored is None:
            raise DeclinedError(f"the bias of {name} {where} is computed, not stored")
        if stored.shape not in ((), (1,), (1, 1), (out,), (1, out)):
            raise DeclinedError(f"the bias of {name} {where} is {list(stored.shape)}, not one per output")
        bias = np.broadcast_to(stored.reshape(-1), (out,)).copy()
    return Layer(node, name, layout, groups, weight, bias)


def consumers(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Return the nodes that read the numbers of ``value``, each with the position of its input.

    Shape and Size read the sides only, which no fold changes.
    """
    return [
        (node, index) for node, index in value.uses() if node.domain or node.op_type not in ("Shape", "Size")
    ]


def is_layer(node: ir.Node) -> bool:
    """Tell whether ``node`` is a convolution or linear layer."""
    return _layout(node) is not None


def channel_axis(node: ir.Node, value: ir.Value | None) -> int | None:
    """Return the axis of the channels of ``value``, an input or output of layer ``node``; None if unknown."""
    if node.op_type != "MatMul":
        return 1
    return None if value is None or value.shape is None else len(value.shape) - 1


def is_padded(node: ir.Node) -> bool:
    """Tell whether a convolution adds zeros around its input."""
    auto_pad = node.attributes.get("auto_pad")
    if auto_pad is not None and auto_pad.as_string() not in ("NOTSET", "VALID"):
        return True
    pads = node.attributes.get("pads")
    return pads is not None and any(pads.as_ints())


def border_before(node: ir.Node, affine: ChannelAffine, weights: Float64Initializers) -> float | None:
    """Return the border value that ``node``, a Pad after ``affine``, needs if ``affine`` is moved after it.

    None if it writes no constant: reflected, repeated and wrapped borders are copied from the map itself.

    Raises:
        DeclinedError: padding and ``affine`` cannot change places.
    """
    pads = weights.read(node.inputs[1])
    if pads is None or (len(node.inputs) > 3 and node.inputs[3] is not None):
        raise DeclinedError(f"how {node_name(node)} behind it pads is not simply stored")
    before, after = pads.reshape(2, -1)
    if before[:2].any() or after[:2].any():
        raise DeclinedError(f"{node_name(node)} behind it pads images or channels, not borders")
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        return None
    value = node.inputs[2] if len(node.inputs) > 2 else None
    stored = np.zeros(()) if value is None else weights.read(value)
    if stored is None:
        raise DeclinedError(f"the value that {node_name(node)} behind it pads with is computed, not stored")
    border = float(stored)
    if affine.keeps_zero and border == 0:
        return 0.0
    # The border c is unchanged if scale * b + shift = c, with one b for all channels after rounding.
    with np.errstate(all="ignore"):
        wanted = ((border - affine.shift) / affine.scale).astype(np.float32)
    if not np.isfinite(wanted).all() or (wanted != wanted[0]).any():
        raise DeclinedError(
            f"{node_name(node)} behind it is padded with a constant, which would have to differ from channel "
            "to channel"
        )
    return float((border - affine.shift[0]) / affine.scale[0])


def node_name(node: ir.Node) -> str:
    """Name a layer as its module is named, anything else by operation and output."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is not None and weight.name and weight.name.endswith(".weight"):
        return weight.name.removesuffix(".weight")
    return f"{node.op_type} ({node.outputs[0].name})"


def batch_norm_name(node: ir.Node) -> str:
    """Name a batch norm as its module is named: "features.1" for features.1.running_mean."""
    for value in node.inputs[1:5]:
        if value is not None and value.name and value.is_initializer() and value.name.rpartition(".")[0]:
            return value.name.rpartition(".")[0]
    return str(node.name or node.outputs[0].name)


def _layout(node: ir.Node) -> Layout | None:
    if node.domain:
        return None
    if node.op_type == "Conv":
        return "conv"
    if node.op_type == "ConvTranspose":
        return "conv_transpose"
    if node.op_type == "MatMul" and node.inputs[1] is not None:
        # Of tokens [..., in] with a stored weight [in, out]; a product of two computed values is no layer.
        weight = node.inputs[1]
        is_matrix = weight.is_initializer() and weight.shape is not None and len(weight.shape) == 2
        return "gemm" if is_matrix else None
    if (
        node.op_type == "Gemm"
        and not _int(node, "transA", 0)
        and _is_one(node, "alpha")
        and _is_one(node, "beta")
    ):
        return "gemm_transposed" if _int(node, "transB", 0) else "gemm"
    return None


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _is_one(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return attribute is None or attribute.as_float() == 1.0
