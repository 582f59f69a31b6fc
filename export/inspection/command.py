"""Runs ``foldserve inspect``: prints the layers of a network, checkpoint or ONNX file as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foldserve.export.inspection.layers import analyse
from foldserve.export.inspection.table import print_layers
from foldserve.export.inspection.target import load_target

if TYPE_CHECKING:
    from foldserve.export.inspection.inspect_config import InspectConfig


def inspect(config: InspectConfig) -> int:
    """Print the layers of ``config.target`` with their figures and the totals; return 0.

    Raises:
        ExportError: it cannot be read as a network.
        TrainingError: it cannot be built, or the checkpoint is damaged.
    """
    target = load_target(config)
    layers = analyse(target.model, target.image_shape, target.parameter_names)
    print_layers(target.title, target.image_shape, layers)
    return 0
