"""Scans a repository's folder for models and versions, and fingerprints their files to detect changes.

Only folders and file attributes are read, no contents. File times are compared with one another, never with
a clock: clocks may jump, and files may have times in the future.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from foldserve.artifact.format import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, README_FILE
from foldserve.artifact.promotion import PROMOTED_FILE
from foldserve.artifact.versions import is_folder, is_version
from foldserve.errors import ArtifactError
from foldserve.serving.repository.folder_hints import check_is_repository, suggest_folder
from foldserve.serving.repository.model_file import SETTINGS_FILE
from foldserve.text import is_legible, legible

if TYPE_CHECKING:
    from pathlib import Path

# One file's device, inode, size, mtime and ctime in ns; None if there is no such file. The kernel sets the
# ctime on any change, so a copy that keeps the mtime (`cp -p`) is detected too.
_FileFingerprint: TypeAlias = "tuple[int, int, int, int, int] | None"
Fingerprint: TypeAlias = tuple[_FileFingerprint, ...]

_VERSION_FILES = (MANIFEST_FILE, MODEL_FILE, GOLDEN_FILE)
# A card alone is no version, but it is hashed too.
_WATCHED_FILES = (*_VERSION_FILES, README_FILE)


@dataclass(frozen=True)
class FoundModel:
    """Describes a model's folder: its versions, ascending, with their fingerprints.

    ``promoted`` is the fingerprint of the file that says which version is the default; None if there is none.
    ``ignored`` are folders in it whose names are not version numbers. ``fault`` says why no version can be
    served; "" if they can.
    """

    folder: Path
    versions: dict[int, Fingerprint]
    settings: Fingerprint = ()
    ignored: tuple[str, ...] = ()
    fault: str = ""
    promoted: _FileFingerprint = None


def scan(repository: Path) -> dict[str, FoundModel]:
    """Return all models in the folder, by name. Hidden folders and folders without versions are not models.

    A name that cannot be sent in a message is escaped, and its model has a fault.

    Raises:
        ArtifactError: ``repository`` is not a folder that can be read, or it is the folder of a model.
    """
    models = find_models(repository)
    if not models:
        check_is_repository(repository)
    return models


def find_models(repository: Path) -> dict[str, FoundModel]:
    """Return what `scan` does, but also none where the folder is a model's own or a version's."""
    try:
        with os.scandir(repository) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and is_folder(entry)]
    except OSError as error:
        raise ArtifactError(
            f"the repository {repository} cannot be read ({error.strerror}); give --repository the folder "
            f"that `foldserve export` wrote to{suggest_folder(repository)}"
        ) from error
    # Legible names last: they win over an escaped name that reads the same.
    found = {legible(name): _scan_model(repository / name) for name in sorted(names, key=is_legible)}
    return {name: model for name, model in sorted(found.items()) if model.versions or model.fault}


def scan_flat(folder: Path, version: int) -> FoundModel:
    """Return the model whose only version, of the number given, is the files in ``folder`` itself.

    Raises:
        ArtifactError: ``folder`` is not a folder that can be read.
    """
    path = str(folder)
    try:
        names = os.listdir(path)  # noqa: PTH208  # names alone, and fast
    except OSError as error:
        raise ArtifactError(
            f"the version's folder {folder} cannot be read ({error.strerror}); with --model-name, give "
            f"--repository the folder that holds {MODEL_FILE}{suggest_folder(folder)}"
        ) from error
    versions = {} if set(_VERSION_FILES).isdisjoint(names) else {version: _fingerprint_version(path)}
    return FoundModel(folder, versions, (_fingerprint(f"{path}/{SETTINGS_FILE}"),))


def _scan_model(folder: Path) -> FoundModel:
    """Scan one model's folder. An error becomes the model's fault, so that the others are still served."""
    # Strings, not paths: with a thousand models this runs a thousand times per second.
    path = str(folder)
    try:
        with os.scandir(path) as entries:
            there = list(entries)
        names = [entry.name for entry in there if is_folder(entry)]
        versions = sorted(int(name) for name in names if is_version(name))
        fingerprints = {version: _fingerprint_version(f"{path}/{version}") for version in versions}
        settings = (_fingerprint(f"{path}/{SETTINGS_FILE}"),)
        has_promoted = any(entry.name == PROMOTED_FILE for entry in there)
        promoted = _fingerprint(f"{path}/{PROMOTED_FILE}") if has_promoted else None
    except Exception as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        return FoundModel(folder, {}, fault=f"its folder cannot be read: {why}")
    ignored = tuple(sorted(name for name in names if not is_version(name) and not name.startswith(".")))
    fault = _fault_of_name(folder.name) if fingerprints else ""
    return FoundModel(folder, fingerprints, settings, ignored, fault, promoted)


def _fault_of_name(name: str) -> str:
    if is_legible(name):
        return ""
    return (
        "its folder's name is not UTF-8 or has control characters (escaped here), so no client can ask for "
        "it: rename the folder"
    )


def _fingerprint_version(path: str) -> Fingerprint:
    return tuple([_fingerprint(f"{path}/{name}") for name in _WATCHED_FILES])


def _fingerprint(path: str) -> _FileFingerprint:
    for look in (os.stat, os.lstat):  # a dangling link differs from a missing file
        try:
            facts = look(path)
        except OSError:
            continue
        return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
    return None
