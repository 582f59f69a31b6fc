"""Folds, rewrites or refuses every batch norm of a graph; `fold_bn` has the arithmetic.

It works on the graph, not on modules or their order, so functional calls, residual connections and ONNX files
need no special case. Each BatchNormalization, branches included, in the order of computation, is

    folded     into the layer before it (convolution, transposed convolution, linear layer, rewritten batch
               norm), else into the layer after it, if the borders allow that
    rewritten  as one multiply and one add per channel if neither is exact: after a ReLU or concatenation, or
               next to a convolution that is used twice or whose output has another consumer
    refused    with a FoldError if its statistics are those of the batch, or not constant
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir

from foldserve.export.errors import FoldError
from foldserve.export.graph.fold_bn import ChannelAffine, batch_norm_affine, fold_after, fold_before
from foldserve.export.graph.fold_layers import (
    DeclinedError,
    Layer,
    batch_norm_name,
    border_before,
    consumers,
    is_layer,
    is_padded,
    node_name,
    read_layer,
)
from foldserve.export.graph.simplify import replace_node, unused_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foldserve.export.graph.weights import Float64Initializers

BATCH_NORM = "BatchNormalization"

_DEFAULT_EPSILON = 1e-5  # ONNX's
_PARTS = ("weight", "bias", "running_mean", "running_var")  # inputs 1 to 4, as PyTorch calls them


@dataclass(frozen=True)
class Fold:
    """Outcome for one batch norm (or the input's scaling): ``reason`` says into which layer, or why not."""

    name: str
    action: Literal["folded", "rewritten"]
    reason: str


class FoldPass:
    """Runs the pass over one graph; the caller stores ``weights``, the unrounded constants, afterwards."""

    def __init__(self, graph: ir.Graph, weights: Float64Initializers) -> None:
        self._graph = graph
        self._weights = weights
        # Output of a multiply and add made by this pass -> (multiply, add, batch norm's name). The next batch
        # norm may be folded into them.
        self._rewritten: dict[ir.Value, tuple[ir.Node, ir.Node, str]] = {}

    def fold_batch_norms(self) -> list[Fold]:
        """Remove every BatchNormalization from the graph.

        Raises:
            FoldError: one of them depends on the batch; the graph must then be discarded.
        """
        nodes = list(self._graph.all_nodes())
        return [self._fold(node) for node in nodes if node.op_type == BATCH_NORM and not node.domain]

    def absorb_scale(self, value: ir.Value, scale: NDArray[np.float64]) -> str:
        """Multiply ``value`` by ``scale`` in the weights of its only consumer; return that layer's name.

        Raises:
            DeclinedError: it would not be exact, or is not possible.
        """
        return self._into_next(value, ChannelAffine(scale, np.zeros_like(scale)))

    def multiply_and_add(self, value: ir.Value, affine: ChannelAffine, name: str) -> tuple[ir.Node, ir.Node]:
        """Return nodes, not yet in the graph, for ``value * scale`` and ``+ shift`` along axis 1.

        Raises:
            FoldError: ``value`` has no known rank.
        """
        if value.shape is None:
            raise FoldError(
                f"{name} is applied to a tensor of unknown rank; expected a graph whose shapes can be "
                "inferred"
            )
        along_channels = (-1, *[1] * (len(value.shape) - 2))
        dtype = value.dtype or ir.DataType.FLOAT
        scale = self._weights.add(f"{name}.scale", affine.scale.reshape(along_channels), dtype)
        shift = self._weights.add(f"{name}.shift", affine.shift.reshape(along_channels), dtype)
        multiply = ir.node("Mul", [value, scale], name=unused_name(self._graph, f"{name}.mul"))
        multiply.outputs[0].name = multiply.name
        add = ir.node("Add", [multiply.outputs[0], shift], name=unused_name(self._graph, f"{name}.add"))
        return multiply, add

    def _fold(self, node: ir.Node) -> Fold:
        name = batch_norm_name(node)
        affine = self._read_batch_norm(node, name)
        value, output = node.inputs[0], node.outputs[0]
        assert value is not None
        try:
            into = self._into_previous(value, affine, node)
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
        replace_node(node, [multiply, add])
        self._rewritten[add.outputs[0]] = (multiply, add, name)
        return Fold(name, "rewritten", f"{not_before}; {not_behind}")

    def _read_batch_norm(self, node: ir.Node, name: str) -> ChannelAffine:
        training = node.attributes.get("training_mode")
        if training is not None and training.as_int():
            raise FoldError(
                f"{name} normalises by the statistics of the current batch: an image's output would depend "
                "on the other images; export the network in eval mode, with running statistics"
            )
        gamma, beta, mean, variance = (
            self._constant(value, f"{name} has a {part}")
            for value, part in zip(node.inputs[1:5], _PARTS, strict=True)
        )
        epsilon = node.attributes.get("epsilon")
        with np.errstate(all="ignore"):  # results that are not finite are refused below
            affine = batch_norm_affine(
                gamma=gamma,
                beta=beta,
                mean=mean,
                variance=variance,
                epsilon=_DEFAULT_EPSILON if epsilon is None else epsilon.as_float(),
            )
        if not (np.isfinite(affine.scale).all() and np.isfinite(affine.shift).all()):
            raise FoldError(
                f"{name} folds to numbers that are not finite (variance below -eps, NaN or infinite weights)"
            )
        return affine

    def _constant(self, value: ir.Value | None, what: str) -> NDArray[np.float64]:
        array = self._weights.read(value)
        if array is None:
            raise FoldError(
                f"{what} that is computed, not stored: it may depend on the images of the batch; expected a "
                "constant"
            )
        return array

    def _into_previous(self, value: ir.Value, affine: ChannelAffine, node: ir.Node) -> str:
        producer = value.producer()
        if producer is None:
            raise DeclinedError("it is applied to the network's input")
        if producer.graph is not node.graph:
            raise DeclinedError(f"{node_name(producer)} before it is outside the branch")
        if len(consumers(value)) > 1 or value.is_graph_output():
            raise DeclinedError(f"the output of {node_name(producer)} before it is used elsewhere too")
        if value in self._rewritten:
            return self._into_rewritten(value, affine)
        layer = read_layer(producer, self._weights, "before it")
        weight, bias = fold_after(layer.weight, layer.bias, affine, layout=layer.layout, groups=layer.groups)
        self._replace(layer, weight, bias)
        return layer.name

    def _into_rewritten(self, value: ir.Value, affine: ChannelAffine) -> str:
        multiply, add, name = self._rewritten[value]
        scale, shift = multiply.inputs[1], add.inputs[1]
        assert scale is not None
        assert shift is not None
        old_scale, old_shift = self._weights.read(scale), self._weights.read(shift)
        assert old_scale is not None
        assert old_shift is not None
        both = ChannelAffine(old_scale.reshape(-1), old_shift.reshape(-1)).then(affine)
        self._weights.write(scale, both.scale.reshape(old_scale.shape))
        self._weights.write(shift, both.shift.reshape(old_shift.shape))
        return name

    def _into_next(self, value: ir.Value, affine: ChannelAffine) -> str:
        uses = consumers(value)
        if value.is_graph_output() and not uses:
            raise DeclinedError("its output is the network's output")
        if len(uses) != 1 or value.is_graph_output():
            raise DeclinedError(f"its output goes to {len(uses) + value.is_graph_output()} places")
        node, index = uses[0]
        if node.graph is not value.graph:
            raise DeclinedError(f"{node_name(node)} behind it is inside a branch")
        if node.op_type == "Pad" and not node.domain and index == 0:
            border = border_before(node, affine, self._weights)
            into = self._into_next(node.outputs[0], affine)
            if border is not None:
                self._pad_with(node, border)
            # The value differs from the network's at this place, so it must not keep the name by which layers
            # are compared.
            node.outputs[0].name = f"{node.outputs[0].name}.unscaled"
            return into
        if index != 0 and is_layer(node):
            raise DeclinedError(f"{node_name(node)} behind it takes it as weights")
        layer = read_layer(node, self._weights, "behind it")
        assert index == 0
        if not affine.keeps_zero and layer.layout == "conv_transpose":
            raise DeclinedError(
                f"{layer.name} behind it is a transposed convolution, whose taps overlap unevenly"
            )
        if not affine.keeps_zero and layer.layout == "conv" and is_padded(node):
            raise DeclinedError(f"{layer.name} behind it is zero-padded")
        weight, bias = fold_before(layer.weight, layer.bias, affine, layout=layer.layout, groups=layer.groups)
        self._replace(layer, weight, bias)
        return layer.name

    def _pad_with(self, node: ir.Node, border: float) -> None:
        """Make a Pad write ``border``, in a new constant, since others may use the old one."""
        data = node.inputs[0]
        assert data is not None
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        value = self._weights.add(
            f"{node.outputs[0].name}.border", np.array(border), data.dtype or ir.DataType.FLOAT
        )
        node.replace_input_with(2, value)

    def _replace(self, layer: Layer, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
        node, weight_value = layer.node, layer.node.inputs[1]
        assert weight_value is not None
        assert weight_value.dtype is not None
        self._weights.write(weight_value, weight)
        old = node.inputs[2] if len(node.inputs) > 2 else None
        wanted = f"{layer.name}.bias"
        is_its_own = old is not None and len(old.uses()) == 1 and not old.is_graph_output()
        if old is not None and is_its_own and old.name == wanted and old.shape == bias.shape:
            self._weights.write(old, bias)
            return
        # The bias is missing, shared with another layer, or an unnamed one that the exporter made.
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, self._weights.add(wanted, bias, weight_value.dtype))

    def _drop(self, node: ir.Node, *, keep_name: bool) -> None:
        """Remove a folded batch norm; with ``keep_name`` its input takes the name of its output."""
        value, output = node.inputs[0], node.outputs[0]
        assert value is not None
        name = output.name
        output.replace_all_uses_with(value, replace_graph_outputs=True)
        assert node.graph is not None
        node.graph.remove(node, safe=True)
        if keep_name:
            value.name = name
