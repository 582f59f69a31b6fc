"""Draws the receptive fields of LeNet's layers, computed on its graph as `foldserve inspect` does."""

from __future__ import annotations

from docsite.figures.drawing import GREY, INK, MUTED, TEAL, Drawing
from docsite.figures.lenet import SIDE, lenet_layers

_CELL, _GAP, _TOP = 5, 38, 78
_WINDOWS = ("Conv", "MaxPool")


def draw() -> str:
    """Return the figure."""
    layers = [layer for layer in lenet_layers() if layer.kind in _WINDOWS and layer.field is not None]
    side = SIDE * _CELL
    width = 20 + len(layers) * (side + _GAP)
    drawing = Drawing(width, _TOP + side + 80, "The receptive field grows from layer to layer")
    drawing.text(20, 28, "What one value of each layer sees of the image", size=17, bold=True, anchor="start")
    drawing.text(
        20, 48, f"LeNet, {SIDE} x {SIDE} pixels; the field of a value in the middle", size=13, anchor="start"
    )
    for index, layer in enumerate(layers):
        assert layer.field is not None
        assert layer.window is not None
        x = 20 + index * (side + _GAP)
        field = layer.field.size[0]
        _grid(drawing, x)
        start = (SIDE - field) // 2 * _CELL  # negative if the field reaches into the padding
        drawing.box(x + start, _TOP + start, field * _CELL, field * _CELL, TEAL, radius=1)
        middle, bottom = x + side / 2, _TOP + side
        drawing.text(middle, bottom + 26, f"{field} x {field} pixels", size=14, bold=True, colour=INK)
        kernel = " x ".join(map(str, layer.window.kernel))
        drawing.text(middle, bottom + 44, f"{layer.kind} {kernel}", size=12)
        drawing.text(middle, bottom + 61, " x ".join(map(str, layer.output)), size=12, colour=MUTED)
        if start < 0:
            for at in (0, side):
                drawing.line(x, _TOP + at, x + side, _TOP + at, colour=MUTED, dashed=True)
                drawing.line(x + at, _TOP, x + at, _TOP + side, colour=MUTED, dashed=True)
            drawing.text(middle, _TOP - 14, "dashed: the image; beyond it, padding", size=11, colour=MUTED)
        if index + 1 < len(layers):
            end = x + side + _GAP - 8
            drawing.arrow(x + side + 4, _TOP + side / 2, end - 6, _TOP + side / 2)
    return drawing.to_svg()


def _grid(drawing: Drawing, x: float) -> None:
    side = SIDE * _CELL
    drawing.box(x, _TOP, side, side, GREY, radius=1)
    for step in range(4, SIDE, 4):
        drawing.line(x + step * _CELL, _TOP, x + step * _CELL, _TOP + side, colour="#d5dbe1")
        drawing.line(x, _TOP + step * _CELL, x + side, _TOP + step * _CELL, colour="#d5dbe1")
