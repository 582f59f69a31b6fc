"""What every kind of source comes to: the network, what must be known of it, and images to prove it with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from foldserve.artifact.format import ModelMetadata
    from foldserve.export.verification.parity import Reference


class Network(Protocol):
    """A network to export, of whatever framework it comes from."""

    def to_graph(self) -> ir.Model:
        """Return a new unfolded graph from images [N, C, H, W] to logits [N, K], free to be changed."""

    def reference(self) -> Reference:
        """Return the network's own logits, which an export must agree with."""

    def layer_values(self, images: NDArray[np.uint8]) -> Mapping[str, NDArray[np.float32]]:
        """Return the float tensors that the layers compute for ``images``, by their names in the graph."""


@dataclass(frozen=True)
class VerificationImages:
    """Images uint8 [N, C, H, W] that both networks answer; class indices int64 [N] where known."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    synthetic: bool
    origin: str

    @property
    def kind(self) -> str:
        """What reports and manifests call the images."""
        return "synthetic" if self.synthetic else "real"


@dataclass(frozen=True)
class Source:
    """``facts`` go into the manifest as they are.

    ``summary`` is one line on what is exported, ``remarks`` are lines on what was decided on the way.
    """

    network: Network
    metadata: ModelMetadata
    verification: VerificationImages
    suggested_name: str
    facts: dict[str, Any]
    summary: str
    remarks: tuple[str, ...] = ()


def tool_version(package: str) -> str:
    """Return the installed version of ``package``; "unknown" where it runs without being installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def sha256_of(content: bytes) -> str:
    """Return the hex digest of a file's content, by which a manifest names it."""
    return hashlib.sha256(content).hexdigest()
