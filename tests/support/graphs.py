"""Small ONNX graphs written by hand, as another tool may write them: no tracing, so they cost nothing."""

from __future__ import annotations

import math
from typing import Any

import onnx
from onnx import TensorProto, helper


def chain(
    *nodes: tuple[str, dict[str, list[int]], dict[str, Any]],
    shape: tuple[int | str, ...] = (3, 16, 16),
) -> onnx.ModelProto:
    """Return a graph of nodes in a row, each (operation, shapes of its weights by name, attributes)."""
    made, weights, before = [], {}, "x"
    for index, (operation, own, attributes) in enumerate(nodes):
        names = {name: f"{index}.{name}" for name in own}
        weights |= {names[name]: sides for name, sides in own.items()}
        made.append(helper.make_node(operation, [before, *names.values()], [f"y{index}"], **attributes))
        before = f"y{index}"
    graph = helper.make_graph(
        made,
        "by hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info(before, TensorProto.FLOAT, None)],
        [
            helper.make_tensor(name, TensorProto.FLOAT, sides, [0.5] * math.prod(sides))
            for name, sides in weights.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
