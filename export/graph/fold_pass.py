"""Folds, rewrites or refuses every batch norm of a graph; `fold_bn` has the arithmetic.

It works on the graph, not on modules or their order, so functional calls, residual connections and ONNX files
need no special case. Each BatchNormalization, branches included, in the order of computation, is

    folded     into the layers before it (convolutions, transposed convolutions, linear layers, rewritten
               batch norms), else into the layers after it, if the borders allow that (`fold_moves`), else
               into a convolution of the same values to whose output it is added (`merge_branches`)
    rewritten  as one multiply and one add per channel if none is exact: before a zero-padded convolution, or
               next to one that is used twice or whose output has another consumer; or as a second comparison
               in the ReLU that stands before the layers that it was moved into
    refused    with a FoldError if its statistics are those of the batch, or not constant
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir

from foldserve.export.errors import FoldError
from foldserve.export.graph.fold_bn import ChannelAffine, batch_norm_affine
from foldserve.export.graph.fold_layers import DeclinedError, batch_norm_name, consumers
from foldserve.export.graph.fold_moves import AffineMoves
from foldserve.export.graph.merge_branches import merge_branches
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
    """Runs the pass over one graph; the caller stores ``weights``, the unrounded constants, afterwards.

    Attributes:
        folds: what became of each batch norm so far.

    Args:
        moves_clips: whether a batch norm may change the bounds of a ReLU or another clip behind it.
    """

    def __init__(self, graph: ir.Graph, weights: Float64Initializers, *, moves_clips: bool = True) -> None:
        self._graph = graph
        self._weights = weights
        self._moves = AffineMoves(graph, weights, moves_clips=moves_clips)
        self.folds: list[Fold] = []
        # Output of a multiply and add that stands for a batch norm -> which of the batch norms.
        self._indices: dict[ir.Value, int] = {}

    def fold_batch_norms(self) -> list[Fold]:
        """Remove every BatchNormalization from the graph.

        Raises:
            FoldError: one of them depends on the batch; the graph must then be discarded.
        """
        for node in list(self._graph.all_nodes()):
            if node.op_type == BATCH_NORM and not node.domain:
                self.folds.append(self._fold(node))
        merged = merge_branches(self._graph, self._weights)
        for value in merged:
            self._now_folded(value, f"into {merged[value]}, parallel to it")
        return self.folds

    @property
    def has_moved_clips(self) -> bool:
        """Whether the bounds of a ReLU or another clip were changed."""
        return self._moves.has_moved_clips

    def leading_map(self, value: ir.Value) -> ChannelAffine | None:
        """Return the map of the rewritten batch norm that alone reads ``value``; None if there is none."""
        found = self._leading(value)
        if found is None:
            return None
        scale, shift = (self._weights.read(node.inputs[1]) for node in found)
        assert scale is not None
        assert shift is not None
        return ChannelAffine(scale.reshape(-1), shift.reshape(-1))

    def remove_leading_map(self, value: ir.Value, into: str) -> None:
        """Remove that batch norm, whose map the caller applies to ``value``; ``into`` is for the record."""
        found = self._leading(value)
        assert found is not None
        output = found[1].outputs[0]
        self._now_folded(output, into)
        output.replace_all_uses_with(value, replace_graph_outputs=True)
        self._graph.remove(found[::-1], safe=True)

    def _leading(self, value: ir.Value) -> tuple[ir.Node, ir.Node] | None:
        readers = [node for node, _ in consumers(value)]
        for multiply, add, _ in self._moves.rewritten.values():
            if readers == [multiply] and add.graph is self._graph and not value.is_graph_output():
                return multiply, add
        return None

    def absorb_scale(self, value: ir.Value, scale: NDArray[np.float64]) -> str:
        """Multiply ``value`` by ``scale`` in the weights of all that reads it; return those layers' names.

        Raises:
            DeclinedError: it would not be exact, or is not possible.
        """
        return self._moves.into_next(value, ChannelAffine(scale, np.zeros_like(scale))).layers

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
        product = multiply.outputs[0]
        product.name, product.shape, product.type = multiply.name, value.shape, value.type
        add = ir.node("Add", [product, shift], name=unused_name(self._graph, f"{name}.add"))
        return multiply, add

    def _fold(self, node: ir.Node) -> Fold:
        name = batch_norm_name(node)
        affine = self._read_batch_norm(node, name)
        value, output = node.inputs[0], node.outputs[0]
        assert value is not None
        try:
            into = self._moves.into_previous(value, affine, node)
        except DeclinedError as declined:
            not_before = str(declined)
        else:
            self._drop(node, keep_name=True)
            return Fold(name, "folded", f"into {into}")
        try:
            moved = self._moves.into_next(output, affine)
        except DeclinedError as declined:
            not_behind = str(declined)
        else:
            self._drop(node, keep_name=False)
            into = f"into {moved.layers}, which follows it"
            if moved.left:
                return Fold(name, "rewritten", f"{into}, but for {moved.left}")
            return Fold(name, "folded", into)
        multiply, add = self.multiply_and_add(value, affine, name)
        replace_node(node, [multiply, add])
        self._moves.rewritten[add.outputs[0]] = (multiply, add, name)
        self._indices[add.outputs[0]] = len(self.folds)
        return Fold(name, "rewritten", f"{not_before}; {not_behind}")

    def _now_folded(self, value: ir.Value, reason: str) -> None:
        """Record that nothing computes ``value`` any more, if it is the output of a rewritten batch norm."""
        if value in self._indices:
            index = self._indices[value]
            self.folds[index] = replace(self.folds[index], action="folded", reason=reason)

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
