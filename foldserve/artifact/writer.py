"""Writes an artifact as a model's next version, atomically: readers see all of it or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foldserve.artifact.format import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, README_FILE
from foldserve.artifact.model_card import model_card
from foldserve.artifact.numbering import changing, last_version, record_version
from foldserve.artifact.schema import SCHEMA_VERSION
from foldserve.replacing import sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from foldserve.artifact.format import Golden, ModelMetadata


def publish_artifact(
    model_folder: Path,
    *,
    model: bytes,
    golden: Golden,
    manifest: Mapping[str, Any],
    metadata: ModelMetadata | None = None,
) -> Path:
    """Write the files as the model's next version under ``model_folder``; return the version's folder.

    ``schema_version`` and ``files`` are added to ``manifest``. With the model's ``metadata``, a model card is
    written too. The version is written to a hidden sibling, synced to disk and renamed, so it appears
    complete or not at all. Existing versions are never changed, and no number is used twice.

    Raises:
        OSError: the folder cannot be written.
        ArtifactError: the golden pairs are not valid, or which numbers are taken cannot be read.
    """
    golden.check(str(manifest.get("precision", "")))
    model_folder.mkdir(parents=True, exist_ok=True)
    contents = {MODEL_FILE: model, GOLDEN_FILE: golden.to_bytes()}
    files = {name: _facts(content) for name, content in contents.items()}
    complete = {"schema_version": SCHEMA_VERSION, "files": files} | dict(manifest)
    if metadata is not None:
        contents[README_FILE] = model_card(complete, metadata).encode()
        files[README_FILE] = _facts(contents[README_FILE])
    contents[MANIFEST_FILE] = (json.dumps(complete, indent=2, ensure_ascii=False) + "\n").encode()
    staging = Path(tempfile.mkdtemp(prefix=".publishing-", dir=model_folder))
    try:
        for name, content in contents.items():
            _write_synced(staging / name, content)
        staging.chmod(0o755)  # mkdtemp's folders are private; a server may run as another user
        version = _rename_to_next_version(staging, model_folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    sync_folder(model_folder)
    return version


def _facts(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _rename_to_next_version(staging: Path, model_folder: Path) -> Path:
    with _alone(model_folder):
        version = last_version(model_folder) + 1
        while True:
            target = model_folder / str(version)
            # Before the version is there: whatever happens in between, and to it, the number is taken.
            record_version(model_folder, version)
            try:
                # Atomic; fails if another exporter's version (never empty) came first.
                staging.rename(target)
            except OSError:
                if not target.exists():
                    raise
                version += 1
            else:
                return target


@contextmanager
def _alone(model_folder: Path) -> Iterator[None]:
    """Keep other exporters waiting. On a file system without locks, that versions are renamed has to do."""
    with ExitStack() as stack:
        with suppress(OSError):
            stack.enter_context(changing(model_folder))
        yield


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
