"""Loads the source of an export: the network, its metadata, and images to verify the export with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foldserve.export.sources.custom_network import load_custom_network
from foldserve.export.sources.flags import onnx_file, source_kind
from foldserve.export.sources.onnx.onnx_file import load_onnx_file
from foldserve.export.sources.source import Source, VerificationImages, tool_version
from foldserve.export.sources.training_run import load_run

if TYPE_CHECKING:
    from foldserve.export.config import ExportConfig

__all__ = ["Source", "VerificationImages", "load_source", "tool_version"]


def load_source(config: ExportConfig) -> Source:
    """Load the source that ``config`` names: a training run, the user's own network, or an ONNX file.

    Raises:
        ExportError: it cannot be exported: flags contradict each other, weights do not fit or are not
            finite, labels do not match, or the network does not turn one image into logits.
        TrainingError: the checkpoint, the data set or the network's code cannot be used.
    """
    kind = source_kind(config)
    if kind == "custom network":
        return load_custom_network(config)
    assert config.source is not None
    if kind == "onnx":
        return load_onnx_file(config, onnx_file(config.source))
    return load_run(config, config.source)
