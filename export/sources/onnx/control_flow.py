"""Refuses ONNX files that decide by the images what to compute.

An If or a Loop decides once for a whole batch: an image's answer would depend on the images beside it. An If
by constants or by shapes, as PyTorch's older exporter wrote a squeeze, a Loop that always runs as often and a
Scan treat all images alike, and are exported. Shapes that depend on the numbers of an image (of what NonZero
found in it) decide by the image too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foldserve.export.errors import SourceError
from foldserve.export.sources.onnx.graph_reads import names_needed
from foldserve.export.sources.onnx.sides_from_numbers import deciding_inputs, is_own

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx

# Their outputs are sides of a value.
_OF_SHAPES = {"Shape", "Size"}
_WHAT_TO_DO = (
    "the answer for an image would depend on the images beside it; export the file without control flow "
    "(Where chooses for each image)"
)


@dataclass(frozen=True)
class _Dependence:
    """Whether the numbers and whether the sides of a value depend on the image's numbers."""

    numbers: bool
    sides: bool

    def __or__(self, other: _Dependence) -> _Dependence:
        return _Dependence(self.numbers or other.numbers, self.sides or other.sides)


@dataclass(frozen=True)
class _OfImage:
    """Names of the values whose numbers, and of those whose sides, depend on the image's numbers."""

    numbers: set[str]
    sides: set[str]

    def copy(self) -> _OfImage:
        return _OfImage(set(self.numbers), set(self.sides))

    def add(self, names: Iterable[str], dependence: _Dependence) -> _OfImage:
        """Note that ``names`` depend on the image; return this."""
        named = {name for name in names if name}
        self.numbers.update(named if dependence.numbers else ())
        self.sides.update(named if dependence.sides else ())
        return self

    def any_of(self, names: Iterable[str]) -> _Dependence:
        """Return what any of ``names`` depends on."""
        names = set(names)
        return _Dependence(not self.numbers.isdisjoint(names), not self.sides.isdisjoint(names))

    def made_by(self, node: onnx.NodeProto) -> _Dependence:
        """Return what the outputs of ``node`` depend on, the graphs within it aside."""
        given = self.any_of(node.input)
        sides = given.sides or self.any_of(deciding_inputs(node)).numbers
        reads_numbers = node.op_type not in _OF_SHAPES or not is_own(node)
        return _Dependence(sides or (given.numbers and reads_numbers), sides)


def check_control_flow(graph: onnx.GraphProto, image: str, output: str) -> None:
    """Check that nothing that ``output`` needs decides by the values of ``image`` what to compute.

    Raises:
        SourceError: an If has a condition, or a Loop a condition or a number of turns, that is computed from
            the image.
    """
    _check(graph, _OfImage({image}, set()), names_needed(output, graph.node))


def _check(graph: onnx.GraphProto, given: _OfImage, needed: set[str] | None) -> _OfImage:
    """Check the nodes of ``graph``; return what is computed from ``given``, itself included."""
    of_image = given.copy()
    for node in graph.node:
        if needed is not None and not needed.intersection(node.output):
            continue
        made = of_image.made_by(node)
        if node.op_type == "If" and node.input[0] in of_image.numbers:
            raise SourceError(
                f"If {_name(node)} decides by {node.input[0]}, which is computed from the image, what to "
                f"compute: {_WHAT_TO_DO}"
            )
        if node.op_type == "Loop":
            _check_decided(node, node.input[:2], of_image)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                made |= _check_inner(node, attribute.g, of_image, made)
        of_image.add(node.output, made)
    return of_image


def _check_inner(
    node: onnx.NodeProto, inner: onnx.GraphProto, of_image: _OfImage, given: _Dependence
) -> _Dependence:
    """Check a graph in ``node``, whose inputs depend on ``given``; return what its outputs depend on."""
    # A Loop gives its body the number of the turn and the condition first, and gets the next condition first.
    first = 2 if node.op_type == "Loop" else 0
    inputs = {value.name for value in inner.input[first:]}
    returned = [value.name for value in inner.output]
    carried = returned[1 : 1 + len(inputs)] if node.op_type == "Loop" else returned
    while True:
        seen = _check(inner, of_image.copy().add(inputs, given), None)
        # What one turn makes of values from outside, the next turn is given.
        following = given | seen.any_of(carried)
        if not inputs or following == given:
            break
        given = following
    if node.op_type == "Loop":
        _check_decided(node, returned[:1], seen)
    return seen.any_of(returned)


def _check_decided(node: onnx.NodeProto, names: Iterable[str], of_image: _OfImage) -> None:
    """Check that none of ``names``, by which a Loop goes on or ends, is computed from the image."""
    for name in names:
        if name in of_image.numbers:
            raise SourceError(
                f"Loop {_name(node)} decides by {name}, which is computed from the image, how often it runs: "
                f"{_WHAT_TO_DO}"
            )


def _name(node: onnx.NodeProto) -> str:
    return node.name or next(name for name in node.output if name)
