"""Orders the nodes of an ONNX graph so that few values are held at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foldserve.export.sources.onnx.graph_reads import names_read

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx


def constants_when_read(nodes: Sequence[onnx.NodeProto], inputs: Iterable[str]) -> list[onnx.NodeProto]:
    """Return ``nodes`` in an order in which what no input reaches is computed just before it is read.

    A file may make its weights from numbers, all of them in front; in float64 they take twice the memory.

    Args:
        nodes: in an order in which they can run, as ONNX demands of a graph.
        inputs: names of the graph's inputs.
    """
    reached = set(inputs)
    waiting: dict[str, int] = {}  # the positions of nodes that no input reaches, by their outputs
    ordered: list[onnx.NodeProto] = []
    for index, node in enumerate(nodes):
        read = names_read(node)
        if reached.isdisjoint(read):
            waiting |= {name: index for name in node.output if name}
        else:
            reached.update(name for name in node.output if name)
            ordered += [nodes[needed] for needed in _take(waiting, nodes, read)]
            ordered.append(node)
    return ordered + [nodes[index] for index in sorted(set(waiting.values()))]


def _take(waiting: dict[str, int], nodes: Sequence[onnx.NodeProto], read: Iterable[str]) -> list[int]:
    """Remove from ``waiting`` the nodes that have to run before ``read`` is there; return their positions."""
    needed: set[int] = set()
    names = list(read)
    while names:
        index = waiting.get(names.pop())
        if index is not None and index not in needed:
            needed.add(index)
            names += names_read(nodes[index])
    for index in needed:
        for name in nodes[index].output:
            waiting.pop(name, None)
    return sorted(needed)
