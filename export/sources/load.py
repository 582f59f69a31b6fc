"""What is exported: the network, what must be known about it, and images to prove it with."""

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
    """Load what ``config`` names: a training run, a network of one's own, or an ONNX file.

    Raises:
        ExportError: it cannot be exported: flags that contradict each other, weights that do not fit or are
            not finite, labels that do not match, a network that is not one image in and logits out.
        TrainingError: the checkpoint, the data set or the network's code cannot be used.
    """
    kind = source_kind(config)
    if kind == "custom network":
        return load_custom_network(config)
    assert config.source is not None
    if kind == "onnx":
        return load_onnx_file(config, onnx_file(config.source))
    return load_run(config, config.source)
