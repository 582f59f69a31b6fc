"""Moves a per-channel affine map into the weights of the layers before it or behind it.

Between the map and a layer there may be operations that move numbers or average them (`fold_routes`), and

    before it   a concatenation: each input takes its part of the map, if all can
                a split: what it splits is mapped in the channels of that part
                a sum:           scale (a + b) + shift = (scale a + shift) + (scale b); a constant is mapped
    behind it   several readers, if all can take it
                a border of one value (`border_before`)
                a ReLU or another clip, which then has a bound for each channel (`fold_clips`)
                a concatenation: a map of all its channels that leaves the others as they are
                a split: each part takes its part of the map, if all can

A move is planned as a list of steps first, and made only if every layer that has to take part can.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foldserve.export.graph.fold_bn import ChannelAffine, fold_after, fold_before
from foldserve.export.graph.fold_changes import WeightChanges
from foldserve.export.graph.fold_clips import clip_before, is_clip, set_bounds
from foldserve.export.graph.fold_concatenations import (
    parts_of_inputs,
    parts_of_outputs,
    widened_to_input,
    widened_to_output,
)
from foldserve.export.graph.fold_layers import (
    DeclinedError,
    Layer,
    border_before,
    channel_axis,
    consumers,
    is_layer,
    is_padded,
    node_name,
    read_layer,
)
from foldserve.export.graph.fold_routes import axis_before, axis_behind, is_route
from foldserve.text import join_first

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from foldserve.export.graph.fold_clips import ChannelClip
    from foldserve.export.graph.weights import Float64Initializers

# A map is moved past this many operations at most: concatenations and readers may branch at each.
_MAX_DEPTH = 12


@dataclass(frozen=True)
class _Step:
    """One change of the graph.

    ``layer`` is the name of the layer that it changes, "" for anything else; ``left`` names an operation that
    there would not be without the map.
    """

    layer: str
    change: Callable[[], None]
    left: str = ""


@dataclass(frozen=True)
class Moved:
    """Where a map went: the names of the layers, and what is left of it between them, else ""."""

    layers: str
    left: str = ""


@dataclass(frozen=True)
class _Map:
    """``affine`` of ``value``, along ``axis``, ``depth`` operations away from where the map was."""

    value: ir.Value
    axis: int
    affine: ChannelAffine
    depth: int = 0

    def moved(self, value: ir.Value | None, axis: int, affine: ChannelAffine) -> _Map:
        """Return the map at another value, one operation further."""
        assert value is not None
        if self.depth == _MAX_DEPTH:
            raise DeclinedError("the layers that could take it are too far away")
        return _Map(value, axis, affine, self.depth + 1)


class AffineMoves:
    """Moves maps over one graph; the caller stores ``weights``, the unrounded constants, afterwards.

    Attributes:
        has_moved_clips: whether a map was moved past a clip whose bounds it changed.

    Args:
        moves_clips: whether that may be done.
    """

    def __init__(self, graph: ir.Graph, weights: Float64Initializers, *, moves_clips: bool = True) -> None:
        self._graph = graph
        self._weights = weights
        self._moves_clips = moves_clips
        self._changes = WeightChanges(graph, weights)
        self.has_moved_clips = False
        # Output of a multiply and add that stands for a batch norm -> (multiply, add, batch norm's name).
        self.rewritten: dict[ir.Value, tuple[ir.Node, ir.Node, str]] = {}

    def into_previous(self, value: ir.Value, affine: ChannelAffine, reader: ir.Node) -> str:
        """Make ``value``, which ``reader`` reads, ``affine`` of it along axis 1; return the layers' names.

        Raises:
            DeclinedError: it would not be exact, or is not possible; nothing has changed.
        """
        return _make(self._before(_Map(value, 1, affine), reader)).layers

    def into_next(self, value: ir.Value, affine: ChannelAffine) -> Moved:
        """Let all that reads ``value`` compute with ``affine`` of it along axis 1; as `into_previous`."""
        return _make(self._behind(_Map(value, 1, affine)))

    def _before(self, wanted: _Map, reader: ir.Node) -> list[_Step]:
        value, axis, affine = wanted.value, wanted.axis, wanted.affine
        producer = value.producer()
        if producer is None:
            raise DeclinedError("it is applied to the network's input")
        if producer.graph is not reader.graph:
            raise DeclinedError(f"{node_name(producer)} before it is outside the branch")
        if len(consumers(value)) > 1 or value.is_graph_output():
            raise DeclinedError(f"the output of {node_name(producer)} before it is used elsewhere too")
        if value.shape is not None and value.shape[axis] != len(affine.scale):
            raise DeclinedError(f"{node_name(producer)} before it has one number for several channels")
        if value in self.rewritten and axis == 1:
            return [_Step(self.rewritten[value][2], lambda: self._fold_into_rewritten(value, affine))]
        if producer.op_type == "Concat" and not producer.domain:
            parts = parts_of_inputs(producer, axis, affine)
            return [
                step
                for given, part in parts
                for step in self._before(wanted.moved(given, axis, part), producer)
            ]
        if producer.op_type == "Split" and not producer.domain:
            given = producer.inputs[0]
            moved = wanted.moved(given, axis, widened_to_input(producer, value, axis, affine))
            return [*self._before(moved, producer), _renaming(moved.value, "normalised")]
        if producer.op_type == "Add" and not producer.domain:
            return self._before_sum(wanted, producer)
        if is_route(producer):
            given = producer.inputs[0]
            assert given is not None
            moved = wanted.moved(given, axis_before(producer, axis, affine, self._weights), affine)
            return [*self._before(moved, producer), _renaming(given, "normalised")]
        layer = read_layer(producer, self._weights, "before it")
        if channel_axis(producer, value) != axis:
            raise DeclinedError(f"{layer.name} before it has its channels on another axis")
        return [_Step(layer.name, lambda: self._changes.fold_into(producer, affine, fold_after))]

    def _before_sum(self, wanted: _Map, node: ir.Node) -> list[_Step]:
        """Plan for the output of an Add: of a constant (a bias, position embeddings), or of two layers."""
        first, second = node.inputs
        assert first is not None
        assert second is not None
        axis, affine = wanted.axis, wanted.affine
        shapes = [value.shape for value in (first, second, wanted.value)]
        ranks = [None if shape is None else len(shape) for shape in shapes]
        for index, given in enumerate((second, first)):
            if self._weights.read(node.inputs[index]) is not None and ranks[1 - index] == ranks[2]:
                mapping = self._mapping(node, index, wanted)
                moved = wanted.moved(given, axis, affine.linear)
                return [*self._before(moved, node), mapping, _renaming(given, "normalised")]
        if None in ranks or ranks[0] != ranks[1]:
            raise DeclinedError(f"{node_name(node)} before it adds tensors of different or unknown ranks")
        return [
            *self._before(wanted.moved(first, axis, affine), node),
            *self._before(wanted.moved(second, axis, affine.linear), node),
            _renaming(first, "normalised"),
            _renaming(second, "normalised"),
        ]

    def _mapping(self, node: ir.Node, index: int, wanted: _Map) -> _Step:
        """Return the step that maps the constant input of an Add."""
        stored = self._weights.read(node.inputs[index])
        assert stored is not None
        assert wanted.value.shape is not None
        affine, rank = wanted.affine, len(wanted.value.shape)
        along = (-1, *[1] * (rank - 1 - wanted.axis))
        sides = np.broadcast_shapes(stored.shape, affine.scale.reshape(along).shape)
        if len(sides) > rank or math.prod(sides) > max(stored.size, affine.scale.size):
            raise DeclinedError(f"the constant that {node_name(node)} before it adds would grow")
        return _Step("", lambda: self._changes.map_constant(node, index, along, affine))

    def _set_bounds(self, clip: ChannelClip, axis: int) -> None:
        set_bounds(clip, axis, self._graph, self._weights)
        self.has_moved_clips |= clip.bounds is not None

    def _fold_into_rewritten(self, value: ir.Value, affine: ChannelAffine) -> None:
        multiply, add, _ = self.rewritten[value]
        scale, shift = multiply.inputs[1], add.inputs[1]
        assert scale is not None
        assert shift is not None
        old_scale, old_shift = self._weights.read(scale), self._weights.read(shift)
        assert old_scale is not None
        assert old_shift is not None
        both = ChannelAffine(old_scale.reshape(-1), old_shift.reshape(-1)).then(affine)
        self._weights.write(scale, both.scale.reshape(old_scale.shape))
        self._weights.write(shift, both.shift.reshape(old_shift.shape))

    def _behind(self, given: _Map) -> list[_Step]:
        value = given.value
        uses = consumers(value)
        if value.is_graph_output() and not uses:
            raise DeclinedError("its output is the network's output")
        if not uses or value.is_graph_output():
            raise DeclinedError(f"its output goes to {len(uses) + value.is_graph_output()} places")
        if len(uses) == 1:
            return self._behind_in(given, *uses[0])
        try:
            return [step for node, index in uses for step in self._behind_in(given, node, index)]
        except DeclinedError as declined:
            raise DeclinedError(f"its output goes to {len(uses)} places: {declined}") from declined

    def _behind_in(self, given: _Map, node: ir.Node, index: int) -> list[_Step]:
        """Plan for one reader: input ``index`` of ``node`` is the value."""
        value, axis, affine = given.value, given.axis, given.affine
        if node.graph is not value.graph:
            raise DeclinedError(f"{node_name(node)} behind it is inside a branch")
        output = node.outputs[0]
        # The values in between differ from the network's, so they must not keep its names.
        renaming = _renaming(output, "unscaled")
        if node.op_type == "Pad" and not node.domain and index == 0 and axis == 1:
            border = border_before(node, affine, self._weights)
            steps = self._behind(given.moved(output, axis, affine))
            if border is not None:
                steps.append(_Step("", lambda: self._changes.pad_with(node, border)))
            return [*steps, renaming]
        if is_clip(node) and index == 0:
            clip = clip_before(node, affine, self._weights)
            if clip.bounds is not None and not self._moves_clips:
                raise DeclinedError(f"{node_name(node)} behind it would make the file round too coarsely")
            change = _Step("", lambda: self._set_bounds(clip, axis), clip.left)
            return [*self._behind(given.moved(output, axis, clip.affine)), change, renaming]
        if node.op_type == "Concat" and not node.domain:
            moved = given.moved(output, axis, widened_to_output(node, index, axis, affine))
            return [*self._behind(moved), renaming]
        if node.op_type == "Split" and not node.domain and index == 0:
            return [
                step
                for part, own in parts_of_outputs(node, axis, affine)
                for step in (*self._behind(given.moved(part, axis, own)), _renaming(part, "unscaled"))
            ]
        if is_route(node) and index == 0:
            moved = given.moved(output, axis_behind(node, axis, affine, self._weights), affine)
            return [*self._behind(moved), renaming]
        if index != 0 and is_layer(node):
            raise DeclinedError(f"{node_name(node)} behind it takes it as weights")
        layer = read_layer(node, self._weights, "behind it")
        assert index == 0
        _check_channels(layer, value, axis, len(affine.scale))
        if not affine.keeps_zero and layer.layout == "conv_transpose":
            raise DeclinedError(
                f"{layer.name} behind it is a transposed convolution, whose taps overlap unevenly"
            )
        if not affine.keeps_zero and layer.layout == "conv" and is_padded(node):
            raise DeclinedError(f"{layer.name} behind it is zero-padded")
        return [_Step(layer.name, lambda: self._changes.fold_into(node, affine, fold_before))]


def _make(steps: list[_Step]) -> Moved:
    """Make the changes; return what took part."""
    for step in steps:
        step.change()
    layers, left = (
        join_first(list(dict.fromkeys(name for name in names if name)))
        for names in ([step.layer for step in steps], [step.left for step in steps])
    )
    return Moved(layers, left)


def _renaming(value: ir.Value, what: str) -> _Step:
    """Return the step that gives ``value``, which will differ from the network's, a name of its own."""

    def rename() -> None:
        value.name = f"{value.name}.{what}"

    return _Step("", rename)


def _check_channels(layer: Layer, value: ir.Value, axis: int, count: int) -> None:
    if channel_axis(layer.node, value) != axis:
        raise DeclinedError(f"{layer.name} behind it has its channels on another axis")
    if value.shape is not None and value.shape[axis] != count:
        raise DeclinedError(f"{layer.name} behind it does not read one number per channel")
