"""Follows which values of an ONNX graph are computed from which, branches included."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx


def names_read(node: onnx.NodeProto) -> set[str]:
    """Return the names that ``node`` reads, itself or in its branches, whose own values are included."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names |= {value.name for value in graph.output}  # may be a value from outside
            for inner in graph.node:
                names |= names_read(inner)
    return names


def names_needed(output: str, nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Return the names of all values that ``nodes`` compute ``output`` from, itself included."""
    makers = {name: node for node in nodes for name in node.output if name}
    needed: set[str] = set()
    waiting = [output]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += names_read(makers[name]) if name in makers else ()
    return needed
