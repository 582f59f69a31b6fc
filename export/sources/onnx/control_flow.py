"""Refuses ONNX files that decide by the images what to compute.

An If or a Loop decides once for a whole batch: an image's answer would depend on the images beside it. An If
by constants or by shapes, as PyTorch's older exporter wrote a squeeze, a Loop that always runs as often and a
Scan treat all images alike, and are exported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from foldserve.export.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx

# Their outputs are sides of a value, which are the same for all images.
_OF_SHAPES = {"Shape", "Size"}
_WHAT_TO_DO = (
    "the answer for an image would depend on the images beside it; export the file without control flow "
    "(Where chooses for each image)"
)


def check_control_flow(graph: onnx.GraphProto, image: str, output: str) -> None:
    """Check that nothing that ``output`` needs decides by the values of ``image`` what to compute.

    Raises:
        SourceError: an If has a condition, or a Loop a condition or a number of turns, that is computed from
            the image.
    """
    _check(graph, {image}, _needed(graph, output))


def _check(graph: onnx.GraphProto, of_image: set[str], needed: set[str] | None) -> set[str]:
    """Check the nodes of ``graph``; return the names of values computed from those in ``of_image``."""
    of_image = set(of_image)
    for node in graph.node:
        if needed is not None and not needed.intersection(node.output):
            continue
        is_of_image = node.op_type not in _OF_SHAPES and any(name in of_image for name in node.input)
        if node.op_type == "If" and node.input[0] in of_image:
            raise SourceError(
                f"If {_name(node)} decides by {node.input[0]}, which is computed from the image, what to "
                f"compute: {_WHAT_TO_DO}"
            )
        if node.op_type == "Loop":
            _check_decided(node, node.input[:2], of_image)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                is_of_image |= _check_inner(node, attribute.g, of_image, is_of_image=is_of_image)
        if is_of_image:
            of_image.update(name for name in node.output if name)
    return of_image


def _check_inner(
    node: onnx.NodeProto, inner: onnx.GraphProto, of_image: set[str], *, is_of_image: bool
) -> bool:
    """Check a graph in ``node``, an input of which ``is_of_image``; tell whether it returns what is."""
    # A Loop gives its body the number of the turn and the condition first, and gets the next condition first.
    first = 2 if node.op_type == "Loop" else 0
    given = {value.name for value in inner.input[first:]}
    returned = [value.name for value in inner.output]
    carried = returned[1 : 1 + len(given)] if node.op_type == "Loop" else returned
    seen = _check(inner, of_image | given if is_of_image else of_image, None)
    # What one turn makes of values from outside, the next turn is given.
    if given and not is_of_image and not seen.isdisjoint(carried):
        seen = _check(inner, of_image | given, None)
    if node.op_type == "Loop":
        _check_decided(node, returned[:1], seen)
    return not seen.isdisjoint(returned)


def _check_decided(node: onnx.NodeProto, names: Iterable[str], of_image: set[str]) -> None:
    """Check that none of ``names``, by which a Loop goes on or ends, is computed from the image."""
    for name in names:
        if name in of_image:
            raise SourceError(
                f"Loop {_name(node)} decides by {name}, which is computed from the image, how often it runs: "
                f"{_WHAT_TO_DO}"
            )


def _needed(graph: onnx.GraphProto, output: str) -> set[str]:
    """Return the names of all values that ``output`` is computed from, itself included."""
    makers = {name: node for node in graph.node for name in node.output if name}
    needed: set[str] = set()
    waiting = [output]
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in makers:
            waiting += _read_by(makers[name])
    return needed


def _read_by(node: onnx.NodeProto) -> set[str]:
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            names |= {value.name for value in attribute.g.output}
            for inner in attribute.g.node:
                names |= _read_by(inner)
    return names


def _name(node: onnx.NodeProto) -> str:
    return node.name or next(name for name in node.output if name)
