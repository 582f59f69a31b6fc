"""Merges parallel linear branches that read the same values into one convolution: the algebra of RepVGG.

A sum of convolutions of the same x, of x itself, and of batch norms of x (Ding et al., RepVGG,
arXiv:2101.03697; Vasu et al., MobileOne, arXiv:2206.04040, and FastViT, arXiv:2303.14189) is one convolution,

    A * x + B * x + (s x + t)  =  (A + B + diag(s)) * x + t,

since a convolution is linear in its kernel. A tap of a kernel reads x at an offset from the output's
position,

    offset = tap * dilation - padding before,

and zero beyond the border. So a kernel is added to another at the taps with the same offsets, exactly if each
of its offsets is among the other's, in every direction, and strides and groups are the same; s x + t is a
kernel of one tap at offset 0. Products of a branch with constants per channel (layer scale), and differences,
are branches too. Everything is float64; the caller rounds once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from foldserve.export.graph.fold_changes import WeightChanges
from foldserve.export.graph.fold_layers import DeclinedError, Layer, is_padded, read_layer

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from foldserve.export.graph.weights import Float64Initializers

_SUMS = {"Add", "Sub", "Mul"}


@dataclass(frozen=True)
class _Branch:
    """A linear function of ``source``: a convolution, or else ``weight`` [C] per channel; plus ``bias``.

    ``absorbed`` are the values on the way from the source that it computes.
    """

    source: ir.Value
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    layer: Layer | None = None
    absorbed: tuple[ir.Value, ...] = ()

    def mapped(self, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> _Branch:
        """Return ``scale`` times this branch plus ``shift``, both [channels]."""
        along = (-1, *[1] * (self.weight.ndim - 1))
        return replace(self, weight=self.weight * scale.reshape(along), bias=self.bias * scale + shift)


def merge_branches(graph: ir.Graph, weights: Float64Initializers) -> dict[ir.Value, str]:
    """Merge all that can be; return the values that are gone, with the layers that compute them now."""
    merging = _Merging(weights, WeightChanges(graph, weights))
    for node in list(graph.all_nodes()):
        if node.op_type in _SUMS and not node.domain and node.graph is not None:
            merging.try_node(node)
    return merging.absorbed


class _Merging:
    def __init__(self, weights: Float64Initializers, changes: WeightChanges) -> None:
        self._weights = weights
        self._changes = changes
        self.absorbed: dict[ir.Value, str] = {}

    def try_node(self, node: ir.Node) -> None:
        """Replace ``node``, a sum or product, by a convolution if it is one of its source."""
        try:
            branch = self._combined(node)
        except DeclinedError:
            return
        layer, output = branch.layer, node.outputs[0]
        if layer is None:
            return
        self._changes.replace_weights(layer, branch.weight, branch.bias)
        self.absorbed |= dict.fromkeys((*branch.absorbed, output), layer.name)
        merged, name = layer.node.outputs[0], output.name
        output.replace_all_uses_with(merged, replace_graph_outputs=True)
        _remove_unused(node)
        merged.name = name

    def _combined(self, node: ir.Node) -> _Branch:
        """Return ``node`` as one branch.

        Raises:
            DeclinedError: it is none.
        """
        first, second = node.inputs
        output = node.outputs[0]
        if first is None or second is None or output.shape is None:
            raise DeclinedError
        for index, (given, constant) in enumerate([(first, second), (second, first)]):
            stored = self._weights.read(constant)
            if stored is None or (index == 1 and node.op_type == "Sub"):
                continue
            branch = self._branch(given, node)
            factors = _per_channel(stored, given, output)
            if node.op_type == "Mul":
                return replace(
                    branch.mapped(factors, np.zeros_like(factors)), absorbed=(*branch.absorbed, output)
                )
            signed = factors if node.op_type == "Add" else -factors
            return replace(branch.mapped(np.ones_like(factors), signed), absorbed=(*branch.absorbed, output))
        if node.op_type == "Mul" or not _are_alike(first, second):
            raise DeclinedError
        left, right = self._branch(first, node), self._branch(second, node)
        if node.op_type == "Sub":
            right = right.mapped(-np.ones_like(right.bias), np.zeros_like(right.bias))
        return _sum(left, right)

    def _branch(self, value: ir.Value, reader: ir.Node) -> _Branch:
        """Return ``value`` as a branch: at least itself, unchanged."""
        itself = _itself(value)
        producer = value.producer()
        is_read_here_only = len(value.uses()) == 1 and not value.is_graph_output()
        if producer is None or not is_read_here_only or producer.graph is not reader.graph:
            return itself
        if producer.op_type in _SUMS and not producer.domain:
            try:
                return self._combined(producer)
            except DeclinedError:
                return itself
        if producer.op_type == "Conv" and not producer.domain and producer.inputs[0] is not None:
            try:
                layer = read_layer(producer, self._weights, "")
            except DeclinedError:
                return itself
            return _Branch(producer.inputs[0], layer.weight, layer.bias, layer, (value,))
        return itself


def _itself(value: ir.Value) -> _Branch:
    channels = None if value.shape is None or len(value.shape) < 3 else value.shape[1]
    if not isinstance(channels, int):
        raise DeclinedError
    return _Branch(value, np.ones(channels), np.zeros(channels))


def _are_alike(first: ir.Value, second: ir.Value) -> bool:
    """Tell whether two values have the same known sides, apart from the number of images."""
    if first.shape is None or second.shape is None:
        return False
    sides, others = list(first.shape)[1:], list(second.shape)[1:]
    return sides == others and all(isinstance(side, int) for side in (*sides, *others))


def _per_channel(stored: NDArray[np.float64], value: ir.Value, output: ir.Value) -> NDArray[np.float64]:
    """Return ``stored`` as [C] if it is constant over space and images, and does not widen ``value``."""
    if value.shape is None or output.shape is None or len(output.shape) != len(value.shape):
        raise DeclinedError
    channels, rank = value.shape[1], len(value.shape)
    if not isinstance(channels, int) or channels != output.shape[1] or stored.ndim > rank:
        raise DeclinedError
    sides = (*[1] * (rank - stored.ndim), *stored.shape)
    if sides[0] != 1 or sides[1] not in (1, channels) or any(side != 1 for side in sides[2:]):
        raise DeclinedError
    return np.broadcast_to(stored.reshape(-1), (channels,)).copy()


def _sum(left: _Branch, right: _Branch) -> _Branch:
    """Return the sum of two branches as one.

    Raises:
        DeclinedError: they read other values, or their taps do not meet.
    """
    if left.source is not right.source:
        raise DeclinedError
    absorbed, bias = (*left.absorbed, *right.absorbed), left.bias + right.bias
    if left.layer is None and right.layer is None:
        return _Branch(left.source, left.weight + right.weight, bias, None, absorbed)
    if left.layer is None or (right.layer is not None and right.weight.size > left.weight.size):
        left, right = right, left
    large = left.layer
    assert large is not None
    small = right.layer
    weight = right.weight
    if small is None:
        weight = _diagonal(weight, large, left.weight)
    elif small.groups != large.groups or _strides(small) != _strides(large):
        raise DeclinedError
    taps = [
        _places(_offsets(large, axis), [0] if small is None else _offsets(small, axis))
        for axis in range(left.weight.ndim - 2)
    ]
    merged = left.weight.copy()
    every = slice(None)
    merged[np.ix_(range(merged.shape[0]), range(merged.shape[1]), *taps)] += weight[every, every]
    return _Branch(left.source, merged, bias, large, absorbed)


def _diagonal(scale: NDArray[np.float64], layer: Layer, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the kernel of one tap, in the groups of ``layer``, that multiplies each channel by ``scale``."""
    out, inner = weight.shape[:2]
    if out != len(scale) or inner * layer.groups != out or any(side != 1 for side in _strides(layer)):
        raise DeclinedError
    kernel = np.zeros((out, inner, *[1] * (weight.ndim - 2)))
    channels = np.arange(out)
    kernel[channels, channels % inner] = scale.reshape(-1, *[1] * (weight.ndim - 2))
    return kernel


def _places(offsets: list[int], wanted: list[int]) -> list[int]:
    if not set(wanted) <= set(offsets):
        raise DeclinedError
    return [offsets.index(offset) for offset in wanted]


def _offsets(layer: Layer, axis: int) -> list[int]:
    """Return where the taps of a kernel read along a spatial axis, relative to the output's position."""
    node, count = layer.node, layer.weight.shape[2 + axis]
    auto_pad = node.attributes.get("auto_pad")
    if auto_pad is not None and auto_pad.as_string() not in ("NOTSET", "VALID"):
        raise DeclinedError  # where they read depends on the size
    pads, dilations = node.attributes.get("pads"), node.attributes.get("dilations")
    before = pads.as_ints()[axis] if pads is not None and is_padded(node) else 0
    dilation = 1 if dilations is None else dilations.as_ints()[axis]
    return [tap * dilation - before for tap in range(count)]


def _strides(layer: Layer) -> list[int]:
    strides = layer.node.attributes.get("strides")
    return [1] * (layer.weight.ndim - 2) if strides is None else list(strides.as_ints())


def _remove_unused(node: ir.Node) -> None:
    """Remove ``node``, whose outputs nothing reads, and then what only it read."""
    waiting = [node]
    while waiting:
        unused = waiting.pop()
        if unused.graph is None or any(value.uses() or value.is_graph_output() for value in unused.outputs):
            continue
        makers = [value.producer() for value in unused.inputs if value is not None]
        unused.graph.remove(unused, safe=True)
        waiting += [maker for maker in makers if maker is not None]
