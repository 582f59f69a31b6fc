"""Publishes a verified model as the next version, with a manifest that says how it was verified."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from foldserve.artifact.format import MODEL_FILE, read_artifact, read_manifest
from foldserve.artifact.model_card import class_accuracies
from foldserve.artifact.versions import list_versions
from foldserve.artifact.writer import publish_artifact
from foldserve.errors import ArtifactError
from foldserve.export.errors import SourceError
from foldserve.export.sources.load import tool_version
from foldserve.export.verification.parity import to_manifest
from foldserve.runtime.session import RUNTIME_VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from foldserve.artifact.format import Golden, ModelMetadata
    from foldserve.export.graph.build import BuiltModel
    from foldserve.export.sources.load import Source
    from foldserve.export.verification.agreement import Agreement
    from foldserve.export.verification.comparison import Comparison
    from foldserve.runtime.session import Session

# Above, the accuracy of each class has a handful of images and the manifest would grow by megabytes.
MOST_CLASSES = 1000

_TOOLS = ("foldserve", "torch", "onnx", "onnx-ir", "onnxscript", "numpy")


def check_writable(folder: Path) -> None:
    """Check that ``folder`` can be created and written, before minutes of verification.

    Raises:
        SourceError: it cannot be, or it is a file or below one.
    """
    try:
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if not nearest.is_dir():
            raise SourceError(f"{nearest} is a file; expected a folder or a path that does not exist yet")
        with tempfile.TemporaryFile(dir=nearest):  # it has no name and is gone at once
            pass
    except OSError as error:
        raise SourceError(
            f"{folder} cannot be written: {error.strerror or error}; give another --repository"
        ) from error


def make_manifest(
    source: Source,
    built: BuiltModel,
    session: Session,
    *,
    comparisons: list[Comparison],
    agreements: list[Agreement],
    golden: Golden,
    precision: str,
) -> dict[str, Any]:
    """Return the manifest, to which `publish_artifact` adds the schema and the hashes of the files."""
    return {
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "precision": precision,
        "inputs": [asdict(spec) for spec in session.inputs],
        "outputs": [asdict(spec) for spec in session.outputs],
        "source": source.facts,
        "folding": [asdict(fold) for fold in built.folds],
        "parity": to_manifest(comparisons, agreements),
        "accuracy": {
            "images": source.verification.origin,
            "image_count": agreements[0].image_count,
            "before": agreements[0].accuracy_before,
            "after": agreements[0].accuracy_after,
        },
        "golden": {
            "count": len(golden.images),
            "synthetic": golden.synthetic,
            "source": source.verification.origin,
            "reference_tolerance": golden.reference_tolerance,
            "runtime_tolerance": golden.runtime_tolerance,
        },
        "tools": {tool: tool_version(tool) for tool in _TOOLS} | {"onnxruntime": RUNTIME_VERSION},
    }


def measure_classes(
    labels: Sequence[str], expected: NDArray[np.float32], classes: NDArray[np.int64] | None
) -> dict[str, Any]:
    """Return the manifest's ``classes`` by the logits ``expected`` [N, K]; {} without ``classes`` [N]."""
    if classes is None or len(labels) > MOST_CLASSES:
        return {}
    right = classes[expected.argmax(axis=1) == classes]
    counts = [np.bincount(each, minlength=len(labels)).tolist() for each in (classes, right)]
    return {"classes": class_accuracies(labels, *counts)}


def find_same(model_folder: Path, content: bytes) -> Path | None:
    """Return the folder of the newest intact version whose model is ``content``; None if there is none."""
    digest = hashlib.sha256(content).hexdigest()
    for version in reversed(list_versions(model_folder) if model_folder.is_dir() else []):
        folder = model_folder / str(version)
        try:
            _, facts = read_manifest(folder)  # cheap, unlike reading the models
            if facts.files[MODEL_FILE].sha256 == digest and read_artifact(folder).model == content:
                return folder
        except ArtifactError:
            continue
    return None


def publish(
    model_folder: Path, content: bytes, golden: Golden, manifest: dict[str, Any], metadata: ModelMetadata
) -> Path:
    """Write the next version into ``model_folder`` and return its folder.

    Raises:
        SourceError: the folder cannot be written, or the disk is full.
    """
    try:
        return publish_artifact(
            model_folder, model=content, golden=golden, manifest=manifest, metadata=metadata
        )
    except OSError as error:
        raise SourceError(
            f"{model_folder} cannot be written: {error.strerror or error}; nothing was published"
        ) from error


def save_rejected(
    repository: Path, name: str, content: bytes, images: NDArray[np.uint8], reason: str
) -> Path:
    """Save a file that failed a check, with images to repeat it, where no server reads; return the folder.

    Raises:
        OSError: the repository cannot be written.
    """
    folder = repository / ".rejected" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    np.save(folder / "images.npy", images)
    (folder / "reason.json").write_text(json.dumps({"reason": reason}, indent=2, ensure_ascii=False) + "\n")
    return folder
