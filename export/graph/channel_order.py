"""Reverses the channels of an image in the graph, and folds that into the convolution behind it.

Networks from Caffe and OpenCV take BGR, clients send RGB. A Gather on axis 1 reverses the channels. A
convolution that reads it computes the same from the image itself, if its weights are put in that order. No
number is computed, so this is exact, borders of zeros included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from foldserve.export.graph.fold_layers import DeclinedError, node_name
from foldserve.export.graph.fold_pass import Fold
from foldserve.export.graph.simplify import add_initializer, unused_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NAME = "channel order"
_CHANNELS = 1  # the axis


def reverse_input_channels(graph: ir.Graph) -> None:
    """Insert a Gather that reverses the channels of ``graph``'s only input [N, C, H, W]."""
    (image,) = graph.inputs
    assert image.shape is not None
    count = image.shape[_CHANNELS]
    assert isinstance(count, int)
    uses = list(image.uses())
    order = add_initializer(graph, f"{image.name}.order", np.arange(count - 1, -1, -1, dtype=np.int64))
    name = unused_name(graph, f"{image.name}.reversed")
    gather = ir.node("Gather", [image, order], {"axis": _CHANNELS}, name=name)
    reordered = gather.outputs[0]
    reordered.name, reordered.shape, reordered.type = name, image.shape, image.type
    for use in uses:
        use.node.replace_input_with(use.idx, reordered)
    first = next(iter(graph), None)
    if first is None:
        graph.append(gather)
    else:
        graph.insert_before(first, gather)


def fold_channel_order(graph: ir.Graph) -> list[Fold]:
    """Fold a reordering of the input's channels into the convolution behind it; one entry if there is one."""
    (image,) = graph.inputs
    folds = []
    for use in list(image.uses()):
        gather, order = use.node, _permutation(use.node)
        if order is None or use.idx != 0 or gather.graph is not graph:
            continue
        try:
            into = _into_next(gather.outputs[0], order)
        except DeclinedError as declined:
            folds.append(Fold(_NAME, "rewritten", str(declined)))
            continue
        gather.outputs[0].replace_all_uses_with(image)
        graph.remove(gather, safe=True)
        folds.append(Fold(_NAME, "folded", f"into {into}"))
    return folds


def _permutation(node: ir.Node) -> NDArray[np.int64] | None:
    """Return the order in which ``node`` gathers all channels, each once; None if it does something else."""
    axis = node.attributes.get("axis")
    if node.op_type != "Gather" or node.domain or axis is None or axis.as_int() != _CHANNELS:
        return None
    data, indices = node.inputs[0], node.inputs[1]
    if data is None or data.shape is None or indices is None or indices.const_value is None:
        return None
    count, order = data.shape[_CHANNELS], indices.const_value.numpy()
    if not isinstance(count, int) or order.ndim != 1 or len(order) != count:
        return None
    order = np.where(order < 0, order + count, order)
    return order if np.array_equal(np.sort(order), np.arange(count)) else None


def _into_next(value: ir.Value, order: NDArray[np.int64]) -> str:
    """Put the weights of the convolutions that read ``value`` in the order of its source.

    Raises:
        DeclinedError: one of its readers is something else, or uses weights that others use too.
    """
    layers, waiting = [], [value]
    while waiting:
        current = waiting.pop()
        if current.is_graph_output():
            raise DeclinedError("it is the network's output")
        for use in current.uses():
            node = use.node
            if node.graph is not value.graph:
                raise DeclinedError(f"{node_name(node)} behind it is inside a branch")
            if node.op_type == "Shape" and not node.domain:
                continue  # the shape does not depend on the order
            if _pads_sides_alone(node) and use.idx == 0:
                waiting.append(node.outputs[0])
                continue
            if node.op_type != "Conv" or node.domain or use.idx != 0:
                raise DeclinedError(f"{node_name(node)} behind it is not a convolution")
            layers.append(node)
    if not layers:
        raise DeclinedError("no convolution is behind it")
    weights = [_own_weight(node, len(order)) for node in layers]
    for weight in weights:
        assert weight.const_value is not None
        given = weight.const_value.numpy()
        changed = np.empty_like(given)
        changed[:, order] = given
        weight.const_value = ir.tensor(changed, name=weight.name)
    return ", ".join(str(weight.name).removesuffix(".weight") for weight in weights)


def _own_weight(node: ir.Node, channel_count: int) -> ir.Value:
    weight, group = node.inputs[1], node.attributes.get("group")
    if group is not None and group.as_int() != 1:
        raise DeclinedError(f"{node_name(node)} behind it has groups of channels")
    if weight is None or weight.const_value is None or not weight.is_initializer():
        raise DeclinedError(f"{node_name(node)} behind it has weights that are computed")
    if len(weight.uses()) > 1 or weight.is_graph_input() or weight.is_graph_output():
        raise DeclinedError(f"the weights of {node_name(node)} behind it are used elsewhere too")
    if weight.const_value.numpy().shape[1] != channel_count:
        raise DeclinedError(f"{node_name(node)} behind it takes another number of channels")
    return weight


def _pads_sides_alone(node: ir.Node) -> bool:
    """Tell whether ``node`` is a Pad that adds no channels: then it treats every channel alike."""
    if node.op_type != "Pad" or node.domain or len(node.inputs) > 3 or node.inputs[1] is None:
        return False
    pads = node.inputs[1].const_value
    if pads is None:
        return False
    sides = pads.numpy().reshape(2, -1)
    return sides.shape[1] > _CHANNELS and not sides[:, _CHANNELS].any()
