"""Makes the LeNet that the figures show: the demo's network, traced and built by the exporter itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
import torch

from foldserve.artifact.format import ModelMetadata
from foldserve.export.graph.build import build_model
from foldserve.export.graph.trace import trace
from foldserve.export.inspection.layers import Layer, analyse
from foldserve.imaging import ImageSpec
from foldserve.training.models import create_model

if TYPE_CHECKING:
    import onnx

SIDE = 28
_SHAPE = (1, SIDE, SIDE)
_CLASS_COUNT = 10


def _traced() -> ir.Model:
    torch.manual_seed(0)
    network = create_model("lenet", in_channels=1, class_count=_CLASS_COUNT, height=SIDE, width=SIDE)
    return trace(network.eval(), _SHAPE).model


def traced_lenet() -> onnx.ModelProto:
    """Return the graph as it is traced, with every batch norm."""
    return ir.to_proto(_traced())


def built_lenet() -> bytes:
    """Return the file that an export publishes."""
    labels = tuple(map(str, range(_CLASS_COUNT)))
    metadata = ModelMetadata(labels, (0.286,), (0.353,), ImageSpec("L", SIDE, SIDE, SIDE))
    return build_model(_traced(), metadata).content


def lenet_layers() -> list[Layer]:
    """Return the layers with their receptive fields, as `foldserve inspect lenet` shows them."""
    return analyse(_traced(), _SHAPE)
