"""Adds the normalisation to the graph, which then takes UINT8 pixels, so that no client can get it wrong.

The network's input is (pixel / 255 - mean) / std per channel, or (pixel - 255 mean) * 1 / (255 std). The mean
is subtracted in the graph; the factor is folded into the first convolution. Folding the mean as well would be
wrong at zero-padded borders: a border must be 0 *after* the subtraction, and no bias can tell border from
pixel. A factor keeps zeros zero, so it is exact everywhere.

A batch norm s x + t of the input itself changes both numbers, and nothing else is left of it:

    s k (pixel - m) + t  =  k' (pixel - m')        k' = s k,   m' = m - t / k',   no s is 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from foldserve.artifact.format import IMAGE
from foldserve.export.graph.fold_layers import DeclinedError
from foldserve.export.graph.fold_pass import Fold, FoldPass
from foldserve.export.graph.simplify import free_name, unused_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foldserve.export.graph.weights import Float64Initializers

PIXEL_MAX = 255.0

_NAME = "input scaling"


def add_normalisation(
    graph: ir.Graph,
    folder: FoldPass,
    weights: Float64Initializers,
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> Fold:
    """Insert a UINT8 input and the normalisation before the float input; ``mean`` and ``std`` are [C]."""
    (floats,) = graph.inputs
    free_name(graph, IMAGE)
    factor: ir.Value | None = None
    scale = 1.0 / (PIXEL_MAX * np.asarray(std, dtype=np.float64))
    subtracted = PIXEL_MAX * np.asarray(mean, dtype=np.float64)
    leading = folder.leading_map(floats)
    if leading is not None and leading.scale.all():
        folder.remove_leading_map(floats, "into the normalisation of the input")
        scale = scale * leading.scale
        subtracted = subtracted - leading.shift / scale
    try:
        into = folder.absorb_scale(floats, scale)
    except DeclinedError as declined:
        record = Fold(_NAME, "rewritten", str(declined))
        factor = weights.add("image.scale", scale.reshape(-1, 1, 1))
    else:
        record = Fold(_NAME, "folded", f"1 / (255 std) into {into}")
    pixels = ir.Value(name=IMAGE, shape=floats.shape, type=ir.TensorType(ir.DataType.UINT8))
    offset = weights.add("image.mean", subtracted.reshape(-1, 1, 1))
    nodes = [ir.node("Cast", [pixels], {"to": ir.DataType.FLOAT}, name="image.cast")]
    nodes.append(ir.node("Sub", [nodes[-1].outputs[0], offset], name="image.subtract_mean"))
    if factor is not None:
        nodes.append(ir.node("Mul", [nodes[-1].outputs[0], factor], name="image.divide_by_std"))
    for node in nodes:
        node.name = node.outputs[0].name = unused_name(graph, str(node.name))
        node.outputs[0].shape = floats.shape
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    floats.replace_all_uses_with(nodes[-1].outputs[0])
    graph.inputs[0] = pixels
    first = next(iter(graph), None)
    if first is None:
        graph.extend(nodes)
    else:
        graph.insert_before(first, nodes)
    return record


def take_pixels(graph: ir.Graph) -> None:
    """Name the input of a ``graph`` that takes UINT8 pixels already."""
    graph.inputs[0].name = IMAGE


def is_normalisation(node: ir.Node) -> bool:
    """Tell whether ``node`` was inserted by `add_normalisation`."""
    return str(node.name).startswith(f"{IMAGE}.")
