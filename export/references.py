"""Which reference goes with which kind of network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from export.adoption.network import NormalizedFile
from export.adoption.reference import ForeignReference
from export.reference import TorchReference

if TYPE_CHECKING:
    from export.parity import Reference
    from training.models import Normalized


def make_reference(module: Normalized | NormalizedFile) -> Reference:
    """Return what an export of ``module`` is compared with: the module, or the file as it was given."""
    return ForeignReference(module) if isinstance(module, NormalizedFile) else TorchReference(module)
