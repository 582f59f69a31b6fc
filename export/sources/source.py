"""Defines what every kind of source provides: a network, its metadata, and images to verify with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from foldserve.artifact.format import ModelMetadata
    from foldserve.export.verification.divergence import LayerRecorder
    from foldserve.export.verification.parity import Reference


class Network(Protocol):
    """A network to export, from any framework."""

    def to_graph(self) -> ir.Model:
        """Return a new unfolded graph from images [N, C, H, W] to logits [N, K], free to be changed."""

    def reference(self) -> Reference:
        """Return the network's own logits, which an export must agree with."""

    def release_weights(self) -> None:
        """Let the weights of a large network leave memory until they are read again."""

    def layer_recorder(self) -> LayerRecorder:
        """Return what computes the float tensors of all layers for images, by their names in the graph."""


@dataclass(frozen=True)
class VerificationImages:
    """Images that both networks are run on.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: class indices int64 [N]; None if not known.
        synthetic: whether they were generated.
        origin: where they come from, for reports and manifests.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    synthetic: bool
    origin: str

    @property
    def kind(self) -> str:
        """The word for the images in reports and manifests."""
        return "synthetic" if self.synthetic else "real"


@dataclass(frozen=True)
class Source:
    """A network to export, with everything that export needs besides.

    Attributes:
        network: the network.
        metadata: labels, normalisation and image preparation.
        verification_images: images to compare network and file on.
        suggested_name: the model name if the user gives none.
        facts: the manifest's ``source`` entry.
        summary: one line that describes the source.
        remarks: one line per decision that loading it took.
        validation: labelled images that training neither learnt from nor was judged by at the end; None if
            there are none.
    """

    network: Network
    metadata: ModelMetadata
    verification: VerificationImages
    suggested_name: str
    facts: dict[str, Any]
    summary: str
    remarks: tuple[str, ...] = ()
    validation: VerificationImages | None = None


def tool_version(package: str) -> str:
    """Return the installed version of ``package``; "unknown" if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def sha256_of(content: bytes) -> str:
    """Return the SHA-256 hex digest of ``content``."""
    return hashlib.sha256(content).hexdigest()
