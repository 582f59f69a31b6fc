"""Every batch norm of a graph folded, rewritten or refused; `export.fold_bn` has the arithmetic.

Works on the graph, not on modules or their order, so functional calls, residual connections and foreign ONNX
files are all the same. For each BatchNormalization, in the order of computation:

    folded     into the layer before it (convolution, transposed convolution, linear, one rewritten so),
               else into the layer behind it where the borders allow that
    rewritten  as one multiply and one add a channel where neither is exact: behind a ReLU or concatenation,
               beside a convolution that is used twice or whose output has another consumer
    refused    with a FoldError: statistics that are not constants
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir

from export.errors import FoldError
from export.fold_bn import ChannelAffine, Layout, batch_norm_affine, fold_after, fold_before
from export.simplify import take_over

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from export.weights import ExactWeights

BATCH_NORM = "BatchNormalization"

_DEFAULT_EPSILON = 1e-5  # ONNX's


@dataclass(frozen=True)
class Fold:
    """What became of one batch norm (or of the input's scaling): ``reason`` says where to, or why not."""

    name: str
    action: Literal["folded", "rewritten"]
    reason: str


class DeclinedError(Exception):
    """This fold would not be exact; the message says why. Never leaves the package."""


@dataclass(frozen=True)
class _Layer:
    """A convolution or linear layer whose weight can be changed."""

    node: ir.Node
    name: str
    layout: Layout
    groups: int
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]


class FoldPass:
    """The pass over one graph; the caller stores ``weights``, the unrounded constants, at the end."""

    def __init__(self, graph: ir.Graph, weights: ExactWeights) -> None:
        self._graph = graph
        self._weights = weights
        # Output of a multiply and add that this pass made -> (multiply, add), into which the next may go.
        self._rewritten: dict[ir.Value, tuple[ir.Node, ir.Node]] = {}

    def fold_batch_norms(self) -> list[Fold]:
        """Take every BatchNormalization out of the graph.

        Raises:
            FoldError: one of them depends on the batch; the graph must then be thrown away.
        """
        return [
            self._fold(node) for node in list(self._graph) if node.op_type == BATCH_NORM and not node.domain
        ]

    def absorb_scale(self, value: ir.Value, scale: NDArray[np.float64]) -> str:
        """Let ``value``'s only consumer see ``scale * value``, by its weights; return the layer's name.

        Raises:
            DeclinedError: not exact, or not possible.
        """
        return self._into_next(value, ChannelAffine(scale, np.zeros_like(scale)))

    def multiply_and_add(self, value: ir.Value, affine: ChannelAffine, name: str) -> tuple[ir.Node, ir.Node]:
        """Return, not yet in the graph, ``value * scale`` and ``+ shift`` along axis 1."""
        rank = len(value.shape) if value.shape is not None else 4
        along_channels = (-1, *[1] * (rank - 2))
        scale = self._weights.add(f"{name}.scale", affine.scale.reshape(along_channels))
        shift = self._weights.add(f"{name}.shift", affine.shift.reshape(along_channels))
        multiply = ir.node("Mul", [value, scale], name=f"{name}.mul")
        multiply.outputs[0].name = f"{name}.mul"
        return multiply, ir.node("Add", [multiply.outputs[0], shift], name=f"{name}.add")

    def _fold(self, node: ir.Node) -> Fold:
        name = _batch_norm_name(node)
        affine = self._read_batch_norm(node, name)
        value, output = node.inputs[0], node.outputs[0]
        assert value is not None
        try:
            into = self._into_previous(value, affine)
        except DeclinedError as declined:
            not_before = str(declined)
        else:
            self._drop(node, keep_name=True)
            return Fold(name, "folded", f"into {into}")
        try:
            into = self._into_next(output, affine)
        except DeclinedError as declined:
            not_behind = str(declined)
        else:
            self._drop(node, keep_name=False)
            return Fold(name, "folded", f"into {into}, which follows it")
        multiply, add = self.multiply_and_add(value, affine, name)
        take_over(self._graph, node, [multiply, add])
        self._rewritten[add.outputs[0]] = (multiply, add)
        return Fold(name, "rewritten", f"{not_before}; {not_behind}")

    def _read_batch_norm(self, node: ir.Node, name: str) -> ChannelAffine:
        training = node.attributes.get("training_mode")
        gamma, beta, mean, variance = (self._weights.read(value) for value in node.inputs[1:5])
        if (training is not None and training.as_int()) or mean is None or variance is None:
            raise FoldError(
                f"{name} normalises by the statistics of the batch it sees: one image's answer would "
                "depend on its neighbours; export the network in eval mode, with running statistics"
            )
        if gamma is None or beta is None:
            raise FoldError(f"{name} has a scale or bias that is computed, not stored; expected constants")
        epsilon = node.attributes.get("epsilon")
        with np.errstate(all="ignore"):  # what does not work out is refused below
            affine = batch_norm_affine(
                gamma=gamma,
                beta=beta,
                mean=mean,
                variance=variance,
                epsilon=_DEFAULT_EPSILON if epsilon is None else epsilon.as_float(),
            )
        if not (np.isfinite(affine.scale).all() and np.isfinite(affine.shift).all()):
            raise FoldError(
                f"{name} does not work out to finite numbers (variance below -eps, NaN or infinite weights)"
            )
        return affine

    def _into_previous(self, value: ir.Value, affine: ChannelAffine) -> str:
        producer = value.producer()
        if producer is None:
            raise DeclinedError("it is applied to the network's input")
        if len(value.uses()) > 1 or value.is_graph_output():
            raise DeclinedError(f"the output of {_node_name(producer)} before it is used elsewhere too")
        if value in self._rewritten:
            return self._into_rewritten(value, affine)
        layer = self._layer(producer, "before it")
        weight, bias = fold_after(layer.weight, layer.bias, affine, layout=layer.layout, groups=layer.groups)
        self._replace(layer, weight, bias)
        return layer.name

    def _into_rewritten(self, value: ir.Value, affine: ChannelAffine) -> str:
        multiply, add = self._rewritten[value]
        scale, shift = multiply.inputs[1], add.inputs[1]
        assert scale is not None
        assert shift is not None
        old_scale, old_shift = self._weights.read(scale), self._weights.read(shift)
        assert old_scale is not None
        assert old_shift is not None
        both = ChannelAffine(old_scale.reshape(-1), old_shift.reshape(-1)).then(affine)
        self._weights.write(scale, both.scale.reshape(old_scale.shape))
        self._weights.write(shift, both.shift.reshape(old_shift.shape))
        return str(add.name).removesuffix(".add")

    def _into_next(self, value: ir.Value, affine: ChannelAffine) -> str:
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            raise DeclinedError(f"its output goes to {len(uses) + value.is_graph_output()} places")
        node, index = uses[0].node, uses[0].idx
        if node.op_type == "Pad" and index == 0 and _pads_what_it_is_given(node, affine):
            into = self._into_next(node.outputs[0], affine)
            # No longer what the network has at this place; a layer-by-layer comparison must not take it for
            # that.
            node.outputs[0].name = f"{node.outputs[0].name}.unscaled"
            return into
        if index != 0:
            raise DeclinedError(f"{_node_name(node)} behind it takes it as weights")
        layer = self._layer(node, "behind it")
        if not affine.keeps_zero and layer.layout == "conv_transpose":
            raise DeclinedError(
                f"{layer.name} behind it is a transposed convolution, whose taps overlap unevenly"
            )
        if not affine.keeps_zero and layer.layout == "conv" and _is_padded(node):
            raise DeclinedError(f"{layer.name} behind it is zero-padded")
        weight, bias = fold_before(layer.weight, layer.bias, affine, layout=layer.layout, groups=layer.groups)
        self._replace(layer, weight, bias)
        return layer.name

    def _layer(self, node: ir.Node, where: str) -> _Layer:
        """Return ``node`` as a layer that this one batch norm may change."""
        layout = _layout(node)
        if layout is None:
            raise DeclinedError(f"{_node_name(node)} {where} is neither convolution nor linear")
        value = node.inputs[1]
        weight = self._weights.read(value)
        if value is None or weight is None:
            raise DeclinedError(f"the weight of {_node_name(node)} {where} is computed, not stored")
        name = str(value.name).removesuffix(".weight")
        if len(value.uses()) > 1 or value.is_graph_output():
            raise DeclinedError(f"the weight of {name} {where} is used {len(value.uses())} times")
        group = node.attributes.get("group")
        groups = 1 if group is None else group.as_int()
        out = weight.shape[1] * groups if layout == "conv_transpose" else weight.shape[layout == "gemm"]
        bias_value = node.inputs[2] if len(node.inputs) > 2 else None
        if bias_value is None:
            bias = np.zeros(out)
        else:
            stored = self._weights.read(bias_value)
            if stored is None or stored.size not in (1, out):
                raise DeclinedError(f"the bias of {name} {where} is computed, not stored")
            bias = np.broadcast_to(stored.reshape(-1), (out,)).copy()
        return _Layer(node, name, layout, groups, weight, bias)

    def _replace(self, layer: _Layer, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
        node, weight_value = layer.node, layer.node.inputs[1]
        assert weight_value is not None
        assert weight_value.dtype is not None
        self._weights.write(weight_value, weight)
        old = node.inputs[2] if len(node.inputs) > 2 else None
        wanted = f"{layer.name}.bias"
        if old is not None and old.name == wanted and len(old.uses()) == 1 and old.shape == bias.shape:
            self._weights.write(old, bias)
            return
        # A missing bias, or one that another layer uses too, or a nameless one that the exporter made up.
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, self._weights.add(wanted, bias, weight_value.dtype))

    def _drop(self, node: ir.Node, *, keep_name: bool) -> None:
        """Take a folded batch norm out; with ``keep_name`` its output's name goes to its input."""
        value, output = node.inputs[0], node.outputs[0]
        assert value is not None
        name = output.name
        output.replace_all_uses_with(value, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)
        if keep_name:
            value.name = name


def _layout(node: ir.Node) -> Layout | None:
    if node.domain:
        return None
    if node.op_type == "Conv":
        return "conv"
    if node.op_type == "ConvTranspose":
        return "conv_transpose"
    if (
        node.op_type == "Gemm"
        and not _int(node, "transA", 0)
        and _is_one(node, "alpha")
        and _is_one(node, "beta")
    ):
        return "gemm_transposed" if _int(node, "transB", 0) else "gemm"
    return None


def _is_padded(node: ir.Node) -> bool:
    auto_pad = node.attributes.get("auto_pad")
    if auto_pad is not None and auto_pad.as_string() not in ("NOTSET", "VALID"):
        return True
    pads = node.attributes.get("pads")
    return pads is not None and any(pads.as_ints())


def _pads_what_it_is_given(node: ir.Node, affine: ChannelAffine) -> bool:
    """Tell whether padding and ``affine`` may change places: no constant but a zero that stays zero."""
    pads = node.inputs[1]
    if pads is None or pads.const_value is None or len(node.inputs) > 3:
        return False
    before, after = pads.const_value.numpy().reshape(2, -1)
    if before[:2].any() or after[:2].any():  # images or channels are padded, not borders
        return False
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        return True
    value = node.inputs[2] if len(node.inputs) > 2 else None
    is_zero = value is None or (value.const_value is not None and not value.const_value.numpy().any())
    return affine.keeps_zero and is_zero


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _is_one(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return attribute is None or attribute.as_float() == 1.0


def _batch_norm_name(node: ir.Node) -> str:
    """Name it as the network's author does: "features.1" of features.1.running_mean."""
    for value in node.inputs[1:5]:
        if value is not None and value.name and value.is_initializer() and value.name.rpartition(".")[0]:
            return value.name.rpartition(".")[0]
    return str(node.name or node.outputs[0].name)


def _node_name(node: ir.Node) -> str:
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is not None and weight.name and weight.name.endswith(".weight"):
        return weight.name.removesuffix(".weight")
    return f"{node.op_type} ({node.outputs[0].name})"
