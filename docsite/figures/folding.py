"""Draws LeNet's graph before and after folding, as the exporter traces and builds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from docsite.figures.drawing import BLUE, GREY, INK, MUTED, ORANGE, RED, TEAL, Drawing
from docsite.figures.lenet import built_lenet, traced_lenet

if TYPE_CHECKING:
    from collections.abc import Sequence

_COLOURS = {
    "Conv": TEAL,
    "BatchNormalization": RED,
    "MatMul": BLUE,
    "Gemm": BLUE,
    "MaxPool": GREY,
    "Sub": ORANGE,
    "Mul": ORANGE,
    "Cast": ORANGE,
}
_NORM = "BatchNormalization"
_SHORT = {"BatchNormalization": "BatchNorm", "MatMul": "Linear", "Gemm": "Linear"}
_STEP, _HEIGHT, _WIDTH, _TOP = 33, 25, 190, 98


def draw() -> str:
    """Return the figure."""
    traced, built = traced_lenet(), onnx.load_from_string(built_lenet())
    before, after = operations(traced), operations(built)
    height = _TOP + _STEP * max(len(before), len(after)) + 16
    drawing = Drawing(640, height, "LeNet's graph before and after folding")
    hidden = len(traced.graph.node) - len(before)
    for middle, title, count, image in (
        (
            150,
            "as PyTorch trained it",
            f"{len(before)} operations, {before.count(_NORM)} batch norms",
            "normalised pixels",
        ),
        (480, "as it is served", f"{len(after)} operations, no batch norm", "uint8 pixels"),
    ):
        drawing.text(middle, 32, title, size=16, bold=True)
        drawing.text(middle, 52, count, size=13)
        drawing.text(middle, 88, image, size=12, colour=MUTED)
    drawing.text(150, 68, f"(and {hidden} that only compute constants)", size=11, colour=MUTED)
    _column(drawing, before, 150)
    _column(drawing, after, 480, conv="Conv, batch norm inside")
    return drawing.to_svg()


def operations(model: onnx.ModelProto) -> list[str]:
    """Return the operators that the image passes through (as first input), in order."""
    reached, names = {model.graph.input[0].name}, []
    for node in model.graph.node:
        if node.op_type != "Shape" and node.input[:1] and node.input[0] in reached:
            reached.update(node.output)
            names.append(node.op_type)
    return names


def _column(drawing: Drawing, names: Sequence[str], middle: float, conv: str = "Conv") -> None:
    shown = _SHORT | {"Conv": conv}
    for index, name in enumerate(names):
        y = _TOP + index * _STEP
        drawing.box(middle - _WIDTH / 2, y, _WIDTH, _HEIGHT, _COLOURS.get(name, ("#ffffff", "#7b8794")))
        drawing.text(middle, y + 17, shown.get(name, name), size=13, colour=INK)
        if index + 1 < len(names):
            drawing.line(middle, y + _HEIGHT, middle, y + _STEP)
