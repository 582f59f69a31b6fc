"""What stands in a repository's folder: models, versions, and a signature of each that changes when it does.

Nothing is read but folders and the facts that the file system keeps of each file. Their times are only
compared with one another, never with a clock, so clocks may jump and files may come from the future.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from serving.artifact import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, is_folder, list_versions
from serving.errors import ArtifactError
from serving.folder_hints import check_is_repository, suggest_folder
from serving.model_settings import SETTINGS_FILE
from serving.shown import is_legible, legible

if TYPE_CHECKING:
    from pathlib import Path

# One file: device, inode, size, times of content and of inode; None where there is none. The last is set by
# the kernel on any change, so a copy that keeps a file's time (`cp -p`) is seen too.
_FileSignature: TypeAlias = "tuple[int, int, int, int, int] | None"
Signature: TypeAlias = tuple[_FileSignature, ...]


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
    try:
        entries = sorted(entry for entry in repository.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise ArtifactError(
            f"the repository {repository} cannot be read ({error.strerror}); give --repository the folder "
            f"that `foldserve export` wrote to{suggest_folder(repository)}"
        ) from error
    # Sound names last: they stand where an escaped one reads the same.
    entries.sort(key=lambda entry: is_legible(entry.name))
    models = {legible(entry.name): _scan_model(entry) for entry in entries if is_folder(entry)}
    models = {name: models[name] for name in sorted(models) if models[name].versions or models[name].fault}
    if not models:
        check_is_repository(repository)
    return models


def find_versions(repository: Path) -> dict[str, list[int]]:
    """Return the versions of each model under ``repository``, both in order; raises as `scan`."""
    return {name: list(model.versions) for name, model in scan(repository).items() if model.versions}


def _scan_model(folder: Path) -> FoundModel:
    """Look at one model; whatever is wrong with its folder is its own fault, not the repository's."""
    try:
        versions = {version: _sign_version(folder / str(version)) for version in list_versions(folder)}
        others = {entry.name for entry in folder.iterdir() if is_folder(entry)} - set(map(str, versions))
        settings = (_sign(folder / SETTINGS_FILE),)
    except Exception as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        return FoundModel(folder, {}, fault=f"its folder cannot be read: {why}")
    ignored = tuple(sorted(name for name in others if not name.startswith(".")))
    return FoundModel(folder, versions, settings, ignored, _fault_of_name(folder.name) if versions else "")


def _fault_of_name(name: str) -> str:
    if is_legible(name):
        return ""
    return (
        "its folder's name is not UTF-8 or has control characters (escaped here), so that no caller could "
        "ask for it: rename the folder"
    )


def _sign_version(folder: Path) -> Signature:
    return tuple(_sign(folder / name) for name in (MANIFEST_FILE, MODEL_FILE, GOLDEN_FILE))


def _sign(path: Path) -> _FileSignature:
    for look in (path.stat, path.lstat):  # a link to nothing is something else than no file
        try:
            facts = look()
        except OSError:
            continue
        return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
    return None
