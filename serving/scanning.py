"""What stands in a repository's folder: models, versions, and a signature of each that changes when it does.

Nothing is read but folders and the facts that the file system keeps of each file. Their times are only
compared with one another, never with a clock, so clocks may jump and files may come from the future.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from serving.artifact import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, list_versions
from serving.errors import ArtifactError
from serving.model_settings import SETTINGS_FILE

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

    ``ignored`` are names beside them that are no versions; ``fault`` says why the folder could not be read.
    """

    folder: Path
    versions: dict[int, Signature]
    settings: Signature = ()
    ignored: tuple[str, ...] = ()
    fault: str = ""


def scan(repository: Path) -> dict[str, FoundModel]:
    """Return every model in the folder, by name; hidden folders and those without versions are none.

    Raises:
        ArtifactError: ``repository`` is not a folder that can be read.
    """
    try:
        folders = sorted(entry for entry in repository.iterdir() if not entry.name.startswith("."))
        models = {folder.name: _scan_model(folder) for folder in folders if folder.is_dir()}
    except OSError as error:
        raise ArtifactError(
            f"the repository {repository} cannot be read ({error.strerror}); give --repository the folder "
            "that `foldserve export` wrote to"
        ) from error
    return {name: model for name, model in models.items() if model.versions or model.fault}


def scan_flat(folder: Path, version: int) -> FoundModel:
    """Return the model whose only version, of the number given, is the files in ``folder`` itself.

    Raises:
        ArtifactError: ``folder`` is not a folder that can be read.
    """
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise ArtifactError(
            f"the version's folder {folder} cannot be read ({error.strerror}); with --model-name, give "
            f"--repository the folder that holds {MODEL_FILE}"
        ) from error
    versions = {version: _sign_version(folder)} if names.intersection(_VERSION_FILES) else {}
    return FoundModel(folder, versions, (_sign(folder / SETTINGS_FILE),))


def find_versions(repository: Path) -> dict[str, list[int]]:
    """Return the versions of each model under ``repository``, both in order; raises as `scan`."""
    return {name: list(model.versions) for name, model in scan(repository).items() if model.versions}


def _scan_model(folder: Path) -> FoundModel:
    try:
        versions = {version: _sign_version(folder / str(version)) for version in list_versions(folder)}
        others = {entry.name for entry in folder.iterdir() if entry.is_dir()} - set(map(str, versions))
        settings = (_sign(folder / SETTINGS_FILE),)
    except OSError as error:
        return FoundModel(folder, {}, fault=f"its folder cannot be read: {error.strerror or error}")
    ignored = tuple(sorted(name for name in others if not name.startswith(".")))
    return FoundModel(folder, versions, settings, ignored)


def _sign_version(folder: Path) -> Signature:
    return tuple(_sign(folder / name) for name in _VERSION_FILES)


def _sign(path: Path) -> _FileSignature:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
