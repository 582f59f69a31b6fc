"""Changes the weights of layers and the constants beside them, as `fold_moves` plans it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from foldserve.export.graph.fold_bn import ChannelAffine
from foldserve.export.graph.fold_layers import Layer, read_layer
from foldserve.export.graph.simplify import unused_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from foldserve.export.graph.weights import Float64Initializers

    Arithmetic = Callable[..., tuple[NDArray[np.float64], NDArray[np.float64]]]


class WeightChanges:
    """Changes one graph; the caller stores ``weights``, the unrounded constants, afterwards."""

    def __init__(self, graph: ir.Graph, weights: Float64Initializers) -> None:
        self._graph = graph
        self._weights = weights

    def fold_into(self, node: ir.Node, affine: ChannelAffine, fold: Arithmetic) -> None:
        """Change the weights of a layer, as they are now: a step before may have changed them."""
        layer = read_layer(node, self._weights, "")
        weight, bias = fold(layer.weight, layer.bias, affine, layout=layer.layout, groups=layer.groups)
        self.replace_weights(layer, weight, bias)

    def replace_weights(self, layer: Layer, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
        """Give ``layer`` other weights, of the same shapes."""
        node, weight_value = layer.node, layer.node.inputs[1]
        assert weight_value is not None
        assert weight_value.dtype is not None
        self._weights.write(weight_value, weight)
        if node.op_type == "MatMul":
            if bias.any():
                self._add_behind(layer, bias)
            return
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

    def _add_behind(self, layer: Layer, bias: NDArray[np.float64]) -> None:
        """Add ``bias`` [out] to the output of a MatMul: in the Add that follows it, or in a new one."""
        node, output = layer.node, layer.node.outputs[0]
        follower, index = next(iter(output.uses())) if len(output.uses()) == 1 else (None, 0)
        if follower is not None and follower.op_type == "Add" and not output.is_graph_output():
            stored = self._weights.read(follower.inputs[1 - index])
            if stored is not None and stored.shape[-1:] == bias.shape:
                self.map_constant(follower, 1 - index, (-1,), ChannelAffine(np.ones_like(bias), bias))
                return
        assert node.graph is not None
        constant = self._weights.add(f"{layer.name}.bias", bias, output.dtype or ir.DataType.FLOAT)
        add = ir.node("Add", [output, constant], name=unused_name(self._graph, f"{layer.name}.add"))
        added = add.outputs[0]
        added.shape, added.type, added.name = output.shape, output.type, output.name
        output.name = unused_name(self._graph, f"{output.name}.without_bias")
        output.replace_all_uses_with(added, replace_graph_outputs=True)
        add.replace_input_with(0, output)
        node.graph.insert_after(node, add)

    def map_constant(self, node: ir.Node, index: int, along: tuple[int, ...], affine: ChannelAffine) -> None:
        """Write ``affine`` of a constant that ``node`` reads, in a new one if others use it too."""
        value = node.inputs[index]
        assert value is not None
        stored = self._weights.read(value)
        assert stored is not None
        mapped = stored * affine.scale.reshape(along) + affine.shift.reshape(along)
        if len(value.uses()) == 1 and not value.is_graph_output() and mapped.shape == stored.shape:
            self._weights.write(value, mapped)
            return
        dtype = value.dtype or ir.DataType.FLOAT
        node.replace_input_with(index, self._weights.add(f"{value.name}.normalised", mapped, dtype))

    def pad_with(self, node: ir.Node, border: float) -> None:
        """Make a Pad write ``border``, in a new constant, since others may use the old one."""
        data = node.inputs[0]
        assert data is not None
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        value = self._weights.add(
            f"{node.outputs[0].name}.border", np.array(border), data.dtype or ir.DataType.FLOAT
        )
        node.replace_input_with(2, value)
