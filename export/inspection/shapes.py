"""Reads the shapes of graph values as plain numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def known_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the shape of ``value``; None if it, or one of its sides, is not known."""
    if value is None or value.shape is None:
        return None
    sides = [side for side in value.shape if isinstance(side, int)]
    return tuple(sides) if len(sides) == len(value.shape) else None
