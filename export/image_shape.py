"""Reads and writes image shapes as on the command line: channels x height x width."""

from __future__ import annotations

import re

_SHAPE = re.compile(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)")


def parse_shape(text: str) -> tuple[int, int, int]:
    """Parse a ``text`` such as "3x224x224" into channels, height and width.

    Raises:
        ValueError: it has another form.
    """
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a shape; expected channels x height x width, such as 3x224x224")
    channels, height, width = (int(side) for side in match.groups())
    return channels, height, width


def show_shape(shape: tuple[int, ...]) -> str:
    """Format ``shape`` as `parse_shape` reads it."""
    return "x".join(map(str, shape))
