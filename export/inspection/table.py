"""Prints the layers of a network as a table."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foldserve.export.inspection.layers import Layer
    from foldserve.export.inspection.windows import Window

# Width of text for a file or pipe, which has no terminal to fit: enough for all columns.
_FILE_WIDTH = 120
_FLOAT_BYTES = 4


def print_layers(title: str, image_shape: tuple[int, ...], layers: Sequence[Layer]) -> None:
    """Print one row per layer, then the totals."""
    console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH, highlight=False)
    console.print(f"{title}, image {_times(image_shape)}", markup=False)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("type", no_wrap=True)
    for header in ("output", "kernel", "stride", "padding", "parameters", "MACs", "field"):
        table.add_column(header, justify="right", no_wrap=True)
    for layer in layers:
        table.add_row(*_cells(layer))
    console.print(table)
    console.print(_totals(layers), markup=False)


def _cells(layer: Layer) -> list[str]:
    window = layer.window
    return [
        layer.name,
        layer.kind,
        _times(layer.output),
        _kernel(window) if window else "",
        _side(window.stride) if window else "",
        _padding(window) if window else "",
        f"{layer.parameters:,}" if layer.parameters else "",
        f"{layer.macs:,}" if layer.macs else "",
        _side(layer.field.size) if layer.field else "-",
    ]


def _totals(layers: Sequence[Layer]) -> str:
    activations = sum(math.prod(layer.output) for layer in layers)
    fields = [layer.field.size for layer in layers if layer.kind == "Conv" and layer.field is not None]
    lines = [
        f"parameters {sum(layer.parameters for layer in layers):,}",
        f"MACs {sum(layer.macs for layer in layers):,} per image",
        f"activations {activations:,} ({activations * _FLOAT_BYTES / 1024:,.0f} KiB per image in fp32)",
    ]
    if fields:  # the largest: that of the last convolution, not of a shortcut parallel to it
        lines.append(f"receptive field of the convolutions {_times(max(fields))}")
    return "\n".join(lines)


def _kernel(window: Window) -> str:
    text = _times(window.kernel)
    if max(window.dilation) > 1:
        text += f" dilation {_side(window.dilation)}"
    if window.groups > 1:
        text += f" groups {window.groups}"
    return text


def _padding(window: Window) -> str:
    if window.padding is None:
        return "same"
    if all(before == after for before, after in window.padding):
        return _side([before for before, _ in window.padding])
    return " ".join(f"{before}+{after}" for before, after in window.padding)


def _side(sides: Sequence[int]) -> str:
    """Format one number if all axes agree: 5 for (5, 5)."""
    return str(sides[0]) if len(set(sides)) == 1 else _times(sides)


def _times(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))
