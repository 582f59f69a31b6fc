"""What stands in a repository's folder: models, versions, and a signature of each that changes when it does.

Nothing is read but folders and the facts that the file system keeps of each file. Their times are only
compared with one another, never with a clock, so clocks may jump and files may come from the future.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from foldserve.artifact.format import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, is_folder, is_version
from foldserve.errors import ArtifactError
from foldserve.serving.repository.folder_hints import check_is_repository, suggest_folder
from foldserve.serving.repository.model_file import SETTINGS_FILE
from foldserve.text import is_legible, legible

if TYPE_CHECKING:
    from pathlib import Path

# One file: device, inode, size, times of content and of inode; None where there is none. The last is set by
# the kernel on any change, so a copy that keeps a file's time (`cp -p`) is seen too.
_FileSignature: TypeAlias = "tuple[int, int, int, int, int] | None"
Signature: TypeAlias = tuple[_FileSignature, ...]

_VERSION_FILES = (MANIFEST_FILE, MODEL_FILE, GOLDEN_FILE)


@dataclass(frozen=True)
class FoundModel:
    """A model's folder: its versions, ascending, by number with their signatures.

    ``ignored`` are names beside them that are no versions; ``fault`` says why none of them can be served.
    """

    folder: Path
    versions: dict[int, Signature]
    settings: Signature = ()
    ignored: tuple[str, ...] = ()
    fault: str = ""


def scan(repository: Path) -> dict[str, FoundModel]:
    """Return every model in the folder, by name; hidden folders and those without versions are none.

    A name that no message could carry is escaped, and its model has a fault.

    Raises:
        ArtifactError: ``repository`` is not a folder that can be read, or is a model's own.
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
    # Legible names last: they stand where an escaped one reads the same.
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
    versions = {} if set(_VERSION_FILES).isdisjoint(names) else {version: _sign_version(path)}
    return FoundModel(folder, versions, (_sign(f"{path}/{SETTINGS_FILE}"),))


def find_versions(repository: Path) -> dict[str, list[int]]:
    """Return the versions of each model under ``repository``, both in order; raises as `scan`."""
    return {name: list(model.versions) for name, model in scan(repository).items() if model.versions}


def _scan_model(folder: Path) -> FoundModel:
    """Look at one model; whatever is wrong with its folder is its own fault, not the repository's."""
    # Strings, not paths: a server of a thousand models comes by here a thousand times a second.
    path = str(folder)
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if is_folder(entry)]
        versions = sorted(int(name) for name in names if is_version(name))
        signed = {version: _sign_version(f"{path}/{version}") for version in versions}
        settings = (_sign(f"{path}/{SETTINGS_FILE}"),)
    except Exception as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        return FoundModel(folder, {}, fault=f"its folder cannot be read: {why}")
    ignored = tuple(sorted(name for name in names if not is_version(name) and not name.startswith(".")))
    return FoundModel(folder, signed, settings, ignored, _fault_of_name(folder.name) if signed else "")


def _fault_of_name(name: str) -> str:
    if is_legible(name):
        return ""
    return (
        "its folder's name is not UTF-8 or has control characters (escaped here), so that no caller could "
        "ask for it: rename the folder"
    )


def _sign_version(path: str) -> Signature:
    return tuple([_sign(f"{path}/{name}") for name in _VERSION_FILES])


def _sign(path: str) -> _FileSignature:
    for look in (os.stat, os.lstat):  # a link to nothing is something else than no file
        try:
            facts = look(path)
        except OSError:
            continue
        return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
    return None
