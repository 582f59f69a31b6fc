"""Which reference goes with which kind of network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foldserve.export.sources.onnx.normalized_file import NormalizedFile
from foldserve.export.sources.onnx.onnx_reference import OnnxReference
from foldserve.export.verification.reference import TorchReference

if TYPE_CHECKING:
    from foldserve.export.verification.parity import Reference
    from foldserve.training.models import Normalized


def make_reference(module: Normalized | NormalizedFile) -> Reference:
    """Return what an export of ``module`` is compared with: the module, or the file as it was given."""
    return OnnxReference(module) if isinstance(module, NormalizedFile) else TorchReference(module)
