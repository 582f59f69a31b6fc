"""Draws the way from images to answers: train, export, verify, serve."""

from __future__ import annotations

from docsite.figures.drawing import BLUE, GREY, MUTED, ORANGE, PURPLE, TEAL, Drawing

_STEPS = (
    ("train", TEAL, ("augment, train,", "evaluate"), "foldserve train"),
    ("export", ORANGE, ("fold batch norm,", "write ONNX"), "foldserve export"),
    ("verify", PURPLE, ("compare with PyTorch,", "keep golden pairs"), "a part of export"),
    ("serve", BLUE, ("replay golden pairs,", "batch, answer"), "foldserve serve"),
)
_BETWEEN = ("images", "best.pt", "model.onnx", "version 1", "labels")
_WIDTH, _GAP, _TOP = 156, 76, 58


def draw() -> str:
    """Return the figure."""
    width = len(_STEPS) * _WIDTH + len(_BETWEEN) * _GAP + 24
    drawing = Drawing(width, 212, "From images to answers: train, export, verify, serve")
    for index, (name, colour, lines, command) in enumerate(_STEPS):
        x = 12 + _GAP + index * (_WIDTH + _GAP)
        middle = x + _WIDTH / 2
        drawing.box(x, _TOP, _WIDTH, 92, colour)
        drawing.text(middle, _TOP + 26, name, size=17, bold=True)
        for number, line in enumerate(lines):
            drawing.text(middle, _TOP + 50 + 18 * number, line, size=13)
        drawing.text(middle, _TOP + 112, command, size=12, colour=MUTED, mono=command.startswith("foldserve"))
    for index, name in enumerate(_BETWEEN):
        x = 12 + index * (_WIDTH + _GAP)
        drawing.arrow(x + 6, _TOP + 46, x + _GAP - 4, _TOP + 46)
        drawing.text(x + _GAP / 2, _TOP + 34, name, size=12)
    # What goes back: a version that fails is never published or never served.
    x = 12 + _GAP + 2 * (_WIDTH + _GAP)
    drawing.text(x + _WIDTH / 2, 30, "differs: nothing is published", size=13, colour="#b42318")
    drawing.text(
        x + _WIDTH / 2 + _WIDTH + _GAP, 30, "differs: refused, others serve", size=13, colour="#b42318"
    )
    for middle in (x + _WIDTH / 2, x + _WIDTH * 1.5 + _GAP):
        drawing.line(middle, 36, middle, _TOP, colour="#b42318", dashed=True)
    drawing.box(12 + _GAP, _TOP + 126, width - 24 - 2 * _GAP, 20, GREY, radius=4)
    drawing.text(
        width / 2,
        _TOP + 140,
        "the same images prepared by the same code, the same logits at every step",
        size=12,
    )
    return drawing.to_svg()
