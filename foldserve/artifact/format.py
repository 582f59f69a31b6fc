"""Defines the model artifact, the files in ``REPOSITORY/NAME/VERSION/``, and reads it.

    model.onnx      the network; `ModelMetadata` in its metadata_props makes this file alone enough to serve
    golden.npz      inputs with two sets of logits: the unfolded PyTorch model's and the file's own (`Golden`)
    README.md       the model card, for people (`foldserve.artifact.model_card`); earlier versions have none
    manifest.json   SHA-256 of the other files, and how they were made and checked

Only the folders name model and version, so a version can be copied or renamed. This module is the single
definition of the format; `foldserve.artifact.schema` has the types and ranges of its JSON fields.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from foldserve.artifact.golden_limits import golden_array, max_tolerance
from foldserve.artifact.npz import read_arrays
from foldserve.artifact.schema import SCHEMA_VERSION, NetworkChannelOrder, parse_manifest, parse_metadata
from foldserve.errors import ArtifactError
from foldserve.files import read_regular_file
from foldserve.imaging import ImageSpec
from foldserve.text import is_legible, join_names, legible, quote

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from foldserve.artifact.schema import ManifestSchema

MODEL_FILE = "model.onnx"
GOLDEN_FILE = "golden.npz"
README_FILE = "README.md"
MANIFEST_FILE = "manifest.json"

# Largest size of each file, and of golden pairs decompressed. A protobuf message, and so an ONNX file, is
# limited to 2 GiB; 1,000 colour images of 224 by 224 pixels are 144 MiB; the manifest of a network of a
# thousand layers is some 300 KiB.
MAX_MODEL_BYTES = 2**31
MAX_GOLDEN_BYTES = 2**30
MAX_MANIFEST_BYTES = 2**22
MAX_README_BYTES = 2**20

IMAGE = "image"  # UINT8 [N, C, H, W]
LOGITS = "logits"  # FP32 [N, K]
PROBABILITIES = "probabilities"  # FP32 [N, K]
# The outputs of an execution, in this order.
OUTPUTS = (LOGITS, PROBABILITIES)

_PREFIX = "foldserve."


@dataclass(frozen=True)
class TensorSpec:
    """Describes a tensor as the protocol does: ``datatype`` as in "FP32", -1 for a variable dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """Holds the metadata inside ``model.onnx`` (metadata_props): all that is needed to use the weights.

    The network sees ``(pixel / 255 - mean) / std`` per channel. The graph computes that: ``mean`` and ``std``
    are here for information and must not be applied again. They are per channel of ``image.channel_order``,
    which clients send. If the network takes another order, the graph reorders the channels, and
    ``network_channel_order`` says so, for information as well. Nor must ``temperature`` be applied again: the
    probabilities are softmax(logits / temperature). ``provenance`` is free text by key (dataset,
    architecture, ...).
    """

    labels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image: ImageSpec
    provenance: Mapping[str, str] = field(default_factory=dict)
    network_channel_order: NetworkChannelOrder | None = None
    temperature: float = 1.0

    def to_props(self) -> dict[str, str]:
        """Return the metadata_props entries, in a fixed order."""
        return {f"{_PREFIX}{key}": text for key, text in self.to_properties().items()}

    def to_properties(self) -> dict[str, str]:
        """Return the same entries under their short names, as in ``ModelMetadata.properties``."""
        image = self.image
        resize: dict[str, Any] = {
            "shorter_side": image.resize_shorter_side,
            "crop": [image.height, image.width],
            "interpolation": "bilinear",
        }
        if image.decode != "full":  # what files from before this rule do not have
            resize["decode"] = image.decode
        if image.fit != "shorter-side":
            resize["fit"] = image.fit
            # Releases that do not know the rule must refuse the file, except where they do the same.
            if image.fit != "crop" or image.height != image.width:
                del resize["shorter_side"]
        properties = {
            "schema": str(SCHEMA_VERSION),
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "mean": json.dumps(self.mean),
            "std": json.dumps(self.std),
            "resize": json.dumps(resize),
            "channel_order": image.channel_order,
        }
        if self.network_channel_order is not None:
            properties["network_channel_order"] = self.network_channel_order
        if self.temperature != 1.0:  # else the entry, like the division, is left out
            properties["temperature"] = json.dumps(self.temperature)
        return properties | {f"provenance.{key}": self.provenance[key] for key in sorted(self.provenance)}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> ModelMetadata:
        """Parse the entries of `to_properties`.

        Raises:
            ArtifactError: as `from_props`.
        """
        return cls.from_props({f"{_PREFIX}{key}": text for key, text in properties.items()})

    @classmethod
    def from_props(cls, props: Mapping[str, str]) -> ModelMetadata:
        """Parse the entries of `to_props`.

        Raises:
            ArtifactError: an entry is missing, malformed or out of range, or the schema version is unknown.
        """
        entries = {key.removeprefix(_PREFIX): text for key, text in props.items() if key.startswith(_PREFIX)}
        facts = parse_metadata(entries, MODEL_FILE)
        try:
            resize = facts.resize
            side, fit = resize.longest_side, resize.fit or "shorter-side"
            image = ImageSpec(facts.channel_order, *resize.crop, side, resize.decode, fit)
        except ValueError as error:
            raise ArtifactError(f"{MODEL_FILE} has malformed metadata: {error}") from None
        start = "provenance."
        return cls(
            labels=facts.labels,
            mean=facts.mean,
            std=facts.std,
            image=image,
            provenance={
                legible(key.removeprefix(start)): legible(text)  # free text, for people
                for key, text in entries.items()
                if key.startswith(start)
            },
            network_channel_order=facts.network_channel_order,
            temperature=facts.temperature,
        )


@dataclass(frozen=True)
class Golden:
    """Holds images with their expected logits, to verify that a file on a device computes the trained model.

    ``images`` are uint8 [G, C, H, W], both logits float32 [G, K]. ``reference_logits`` are those of the
    unfolded PyTorch model in eval mode on a CPU; they verify the export. ``runtime_logits`` are those of the
    file under ONNX Runtime on the exporting machine; with a tighter tolerance, they detect damage and changed
    runtimes. Tolerances are absolute. ``synthetic`` tells that the images are seeded noise, because no real
    images were given.
    """

    images: NDArray[np.uint8]
    reference_logits: NDArray[np.float32]
    runtime_logits: NDArray[np.float32]
    reference_tolerance: float
    runtime_tolerance: float
    synthetic: bool

    def to_bytes(self) -> bytes:
        """Return the contents of ``golden.npz``."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            images=self.images,
            reference_logits=self.reference_logits,
            runtime_logits=self.runtime_logits,
            reference_tolerance=np.float64(self.reference_tolerance),
            runtime_tolerance=np.float64(self.runtime_tolerance),
            synthetic=np.bool_(self.synthetic),
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Golden:
        """Parse the contents of ``golden.npz``.

        Raises:
            ArtifactError: the file is malformed, or its arrays do not fit together.
        """
        try:
            arrays = read_arrays(content, [each.name for each in fields(cls)], MAX_GOLDEN_BYTES)
            golden = cls(
                images=golden_array(arrays, "images", np.uint8, 4),
                reference_logits=golden_array(arrays, "reference_logits", np.float32, 2),
                runtime_logits=golden_array(arrays, "runtime_logits", np.float32, 2),
                reference_tolerance=float(golden_array(arrays, "reference_tolerance", np.float64, 0)),
                runtime_tolerance=float(golden_array(arrays, "runtime_tolerance", np.float64, 0)),
                synthetic=bool(golden_array(arrays, "synthetic", np.bool_, 0)),
            )
        except ArtifactError:
            raise
        except Exception as error:  # zipfile, zlib, numpy and KeyError all mean the same thing here
            raise ArtifactError(f"{GOLDEN_FILE} cannot be read: {error}") from error
        golden.check()
        return golden

    def check(self, precision: str = "") -> None:
        """Check that the arrays fit together, are not empty and are finite, and check the tolerances.

        Raises:
            ArtifactError: they are not.
        """
        count = len(self.images)
        arrays_fit = (
            self.images.dtype == np.uint8
            and self.images.ndim == 4
            and self.reference_logits.dtype == self.runtime_logits.dtype == np.float32
            and self.reference_logits.ndim == 2
            and self.reference_logits.shape == self.runtime_logits.shape
            and count == len(self.reference_logits)
        )
        if not arrays_fit or self.images.size == 0 or self.reference_logits.size == 0:
            raise ArtifactError(f"{GOLDEN_FILE} holds no golden pairs, or arrays that do not fit together")
        # With NaN or infinity, a comparison would pass or fail whatever the model's outputs are.
        if not (np.isfinite(self.reference_logits).all() and np.isfinite(self.runtime_logits).all()):
            raise ArtifactError(f"{GOLDEN_FILE} holds logits that are not finite")
        self.check_tolerances(precision)

    def check_tolerances(self, precision: str) -> None:
        """Check that the tolerances are as small as an export in ``precision`` writes; "" is any precision.

        A wider tolerance would accept a network that is not the trained one.

        Raises:
            ArtifactError: they are not.
        """
        tolerances = (self.reference_tolerance, self.runtime_tolerance)
        if not all(np.isfinite(value) and value > 0 for value in tolerances):
            raise ArtifactError(
                f"{GOLDEN_FILE} has tolerances {tolerances}; both must be positive and finite"
            )
        most = max_tolerance(self.reference_logits, precision)
        if not self.runtime_tolerance <= self.reference_tolerance <= most:
            raise ArtifactError(
                f"{GOLDEN_FILE} has the tolerances {tolerances}, for the trained model's logits and for the "
                f"file's own; {f'in {precision} ' if precision else ''}the first must be at most {most:.3g} "
                "and the second at most the first: export the model again"
            )


@dataclass(frozen=True)
class Artifact:
    """Holds a version's files, whose hashes were checked; ``model`` is the content that was hashed."""

    folder: Path
    model: bytes
    golden: Golden
    manifest: Mapping[str, Any]

    @property
    def model_sha256(self) -> str:
        """Hex digest of ``model.onnx``."""
        return str(self.manifest["files"][MODEL_FILE]["sha256"])

    @property
    def digests(self) -> tuple[str, str]:
        """Hex digests of ``model.onnx`` and ``golden.npz``; if equal, the version has not changed."""
        return self.model_sha256, str(self.manifest["files"][GOLDEN_FILE]["sha256"])


def read_artifact(folder: Path, within: Path | None = None) -> Artifact:
    """Read a version's files and check their hashes against its manifest.

    Args:
        folder: the version's folder.
        within: the repository, which links must not lead out of; None if the files are trusted.

    Raises:
        ArtifactError: a file is missing, unreadable or outside ``within``, the manifest is malformed or of an
            unknown schema version, or a file's SHA-256 differs from the manifest's.
    """
    manifest, facts = read_manifest(folder, within)
    contents = {}
    limits = {MODEL_FILE: MAX_MODEL_BYTES, GOLDEN_FILE: MAX_GOLDEN_BYTES, README_FILE: MAX_README_BYTES}
    for name, max_bytes in limits.items():
        if name not in facts.files:  # a card that there is not; the others were asked for
            continue
        contents[name] = read_regular_file(folder / name, within, max_bytes)
        _check_hash(name, contents[name], facts.files[name].sha256)
    golden = Golden.from_bytes(contents[GOLDEN_FILE])
    golden.check_tolerances(facts.precision)
    return Artifact(folder, contents[MODEL_FILE], golden, manifest)


def read_manifest(folder: Path, within: Path | None = None) -> tuple[dict[str, Any], ManifestSchema]:
    """Read ``manifest.json``; return it as a dict, and its checked fields.

    ``within`` is as in `read_artifact`.

    Raises:
        ArtifactError: it is missing, unreadable, malformed or of an unknown schema version, or it lists other
            files than those of a version.
    """
    content = read_regular_file(folder / MANIFEST_FILE, within, MAX_MANIFEST_BYTES)
    manifest, facts = parse_manifest(content, MANIFEST_FILE)
    # File names in the manifest are never used as paths.
    if unknown := facts.files.keys() - {MODEL_FILE, GOLDEN_FILE, README_FILE}:
        raise ArtifactError(
            f"{MANIFEST_FILE} is malformed: it lists {join_names(sorted(unknown))}; a version has only "
            f"{MODEL_FILE}, {GOLDEN_FILE} and {README_FILE}"
        )
    if missing := [name for name in (MODEL_FILE, GOLDEN_FILE) if name not in facts.files]:
        raise ArtifactError(f"{MANIFEST_FILE} has no SHA-256 for {missing[0]}")
    return manifest, facts


def _check_hash(name: str, content: bytes, expected: str) -> None:
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise ArtifactError(
            f"{name} is not the file that was exported: its SHA-256 is {actual}, but {MANIFEST_FILE} says "
            f"{expected}; export it again or restore it from a good copy"
        )


def check_labels(labels: Sequence[str], class_count: int) -> None:
    """Check that there is exactly one legible label per class.

    Raises:
        ArtifactError: there is not.
    """
    if len(labels) != class_count:
        raise ArtifactError(
            f"{len(labels)} labels for {class_count} classes; there must be one label per class"
        )
    if illegible := [label for label in labels if not is_legible(label)]:
        raise ArtifactError(f"the label {quote(illegible[0])} has control characters, or is not UTF-8")
