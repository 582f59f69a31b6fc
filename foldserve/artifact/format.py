"""The model artifact: what stands in ``REPOSITORY/NAME/VERSION/`` and how it is read.

    model.onnx      the network; `ModelMetadata` in its metadata_props makes this file alone enough to serve
    golden.npz      inputs with two sets of logits: the unfolded PyTorch model's and the file's own (`Golden`)
    manifest.json   SHA-256 of the other files, and how they were made and checked

The folders name model and version and nothing inside repeats them, so a version can be copied or renamed. The
reader owns the format: this is its single definition, with the types and ranges of its texts in
`artifact_facts`.
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
from foldserve.artifact.schema import SCHEMA_VERSION, read_manifest_facts, read_metadata_facts
from foldserve.errors import ArtifactError
from foldserve.files import read_regular_file
from foldserve.imaging import ImageSpec
from foldserve.text import is_legible, join_names, legible, quote

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from foldserve.artifact.schema import ManifestFacts

MODEL_FILE = "model.onnx"
GOLDEN_FILE = "golden.npz"
MANIFEST_FILE = "manifest.json"

# The most there may be of each file, and of golden pairs once they are unpacked. A protobuf message, and so
# an ONNX file, ends at 2 GiB; 1,000 images of 224 by 224 pixels in colour are 144 MiB; the manifest of a
# network of a thousand layers is some 300 KiB.
MAX_MODEL_BYTES = 2**31
MAX_GOLDEN_BYTES = 2**30
MAX_MANIFEST_BYTES = 2**22

IMAGE = "image"  # UINT8 [N, C, H, W]
LOGITS = "logits"  # FP32 [N, K]
PROBABILITIES = "probabilities"  # FP32 [N, K]
# What an execution gives, in this order.
OUTPUTS = (LOGITS, PROBABILITIES)

_PREFIX = "foldserve."


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor as the protocol describes it: ``datatype`` as in "FP32", -1 for a variable side."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """What travels inside ``model.onnx`` (metadata_props): all that is needed to use the weights.

    The network sees ``(pixel / 255 - mean) / std`` per channel; that arithmetic is in the graph, and ``mean``
    and ``std`` are here to be read, not applied again. ``provenance`` is free text by key (dataset,
    architecture, ...).
    """

    labels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image: ImageSpec
    provenance: Mapping[str, str] = field(default_factory=dict)

    def to_props(self) -> dict[str, str]:
        """Return the metadata_props entries, in a fixed order."""
        return {f"{_PREFIX}{key}": text for key, text in self.to_properties().items()}

    def to_properties(self) -> dict[str, str]:
        """Return the same entries under the short names that ``ModelMetadata.properties`` has."""
        properties = {
            "schema": str(SCHEMA_VERSION),
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "mean": json.dumps(self.mean),
            "std": json.dumps(self.std),
            "resize": json.dumps(
                {
                    "shorter_side": self.image.resize_shorter_side,
                    "crop": [self.image.height, self.image.width],
                    "interpolation": "bilinear",
                }
            ),
            "channel_order": self.image.channel_order,
        }
        return properties | {f"provenance.{key}": self.provenance[key] for key in sorted(self.provenance)}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> ModelMetadata:
        """Read what `to_properties` wrote; raises ArtifactError as `from_props` does."""
        return cls.from_props({f"{_PREFIX}{key}": text for key, text in properties.items()})

    @classmethod
    def from_props(cls, props: Mapping[str, str]) -> ModelMetadata:
        """Read what `to_props` wrote.

        Raises:
            ArtifactError: an entry is missing, malformed, out of range or of a schema that this version does
                not know.
        """
        entries = {key.removeprefix(_PREFIX): text for key, text in props.items() if key.startswith(_PREFIX)}
        facts = read_metadata_facts(entries, MODEL_FILE)
        try:
            image = ImageSpec(facts.channel_order, *facts.resize.crop, facts.resize.shorter_side)
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
        )


@dataclass(frozen=True)
class Golden:
    """Inputs whose answers are known: the proof that a file on a device still computes what was trained.

    ``images`` uint8 [G, C, H, W]; both logits float32 [G, K]. ``reference_logits`` are those of the unfolded
    PyTorch model in eval mode on CPU and prove the export; ``runtime_logits`` are the file's own, under ONNX
    Runtime on the exporting machine, with a tighter tolerance, and catch damage and changed runtimes.
    Tolerances are absolute. ``synthetic`` says that no real images were given and the inputs are seeded
    noise.
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
        """Read what `to_bytes` wrote.

        Raises:
            ArtifactError: not such a file, or its arrays do not fit together.
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
        """Raise ArtifactError unless the arrays fit together and could prove something."""
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
        # NaN or infinity anywhere would make every comparison pass or fail whatever the model answers.
        if not (np.isfinite(self.reference_logits).all() and np.isfinite(self.runtime_logits).all()):
            raise ArtifactError(f"{GOLDEN_FILE} holds logits that are not finite")
        self.check_tolerances(precision)

    def check_tolerances(self, precision: str) -> None:
        """Raise ArtifactError unless the tolerances are such as an export in ``precision`` writes.

        "" is any precision. A wide tolerance would let through what is not the network that was trained.
        """
        tolerances = (self.reference_tolerance, self.runtime_tolerance)
        if not all(np.isfinite(value) and value > 0 for value in tolerances):
            raise ArtifactError(
                f"{GOLDEN_FILE} has tolerances {tolerances}; both must be positive and finite"
            )
        most = max_tolerance(self.reference_logits, precision)
        if not self.runtime_tolerance <= self.reference_tolerance <= most:
            raise ArtifactError(
                f"{GOLDEN_FILE} has tolerances {tolerances} for the trained model's logits and the file's "
                f"own; of these logits{f' in {precision}' if precision else ''} the first may be {most:.3g} "
                "at most, and the second no larger than the first: export the model again"
            )


@dataclass(frozen=True)
class Artifact:
    """One version as read from disk, hashes checked. ``model`` is the very content that was hashed."""

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
        """Hex digests of what is served and of what proves it; equal ones mean that nothing changed."""
        return self.model_sha256, str(self.manifest["files"][GOLDEN_FILE]["sha256"])


def read_artifact(folder: Path, within: Path | None = None) -> Artifact:
    """Read a version folder and check it against its manifest.

    Args:
        folder: the version's.
        within: the repository, which no link may lead out of; None where whoever asks owns the files.

    Raises:
        ArtifactError: a file is missing, unreadable or elsewhere, the manifest is malformed or of a future
            schema, or a file's SHA-256 is not the manifest's.
    """
    manifest, facts = read_manifest(folder, within)
    contents = {}
    for name, most_bytes in ((MODEL_FILE, MAX_MODEL_BYTES), (GOLDEN_FILE, MAX_GOLDEN_BYTES)):
        contents[name] = read_regular_file(folder / name, within, most_bytes)
        _check_hash(name, contents[name], facts.files[name].sha256)
    golden = Golden.from_bytes(contents[GOLDEN_FILE])
    golden.check_tolerances(facts.precision)
    return Artifact(folder, contents[MODEL_FILE], golden, manifest)


def read_manifest(folder: Path, within: Path | None = None) -> tuple[dict[str, Any], ManifestFacts]:
    """Read ``manifest.json``, whole and as far as it is used; ``within`` as in `read_artifact`.

    Raises:
        ArtifactError: missing, unreadable, malformed, of a future schema, or of other files than a version's.
    """
    content = read_regular_file(folder / MANIFEST_FILE, within, MAX_MANIFEST_BYTES)
    manifest, facts = read_manifest_facts(content, MANIFEST_FILE)
    # No path is made of a name in it: what a version consists of is known.
    if unknown := facts.files.keys() - {MODEL_FILE, GOLDEN_FILE}:
        raise ArtifactError(
            f"{MANIFEST_FILE} is malformed: it names {join_names(sorted(unknown))}; a version has "
            f"{MODEL_FILE} and {GOLDEN_FILE} alone"
        )
    if missing := [name for name in (MODEL_FILE, GOLDEN_FILE) if name not in facts.files]:
        raise ArtifactError(f"{MANIFEST_FILE} has no SHA-256 for {missing[0]}")
    return manifest, facts


def list_versions(model_folder: Path) -> list[int]:
    """Return the versions under ``model_folder``, ascending; other names (hidden ones too) are ignored."""
    return sorted(
        int(entry.name) for entry in model_folder.iterdir() if is_version(entry.name) and is_folder(entry)
    )


def is_version(name: str) -> bool:
    """Tell whether a name is a version's: a positive integer, plainly spelt ("01" would collide with "1")."""
    return name.isascii() and name.isdigit() and name[0] != "0"


def _check_hash(name: str, content: bytes, expected: str) -> None:
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise ArtifactError(
            f"{name} is not the file that was exported: its SHA-256 is {actual}, {MANIFEST_FILE} says "
            f"{expected}; "
            "export it again or restore it from a good copy"
        )


def is_folder(path: Path | os.DirEntry[str]) -> bool:
    """Tell whether there is a folder, or something of which that cannot be told."""
    try:
        return path.is_dir()
    except OSError:  # no leave to look, a broken disk: whoever reads it is told what is wrong
        return True


def check_labels(labels: Sequence[str], class_count: int) -> None:
    """Raise ArtifactError unless there is exactly one legible label a class."""
    if len(labels) != class_count:
        raise ArtifactError(
            f"{len(labels)} labels for {class_count} classes; there must be one label a class"
        )
    if illegible := [label for label in labels if not is_legible(label)]:
        raise ArtifactError(f"the label {quote(illegible[0])} has control characters, or is not UTF-8")
