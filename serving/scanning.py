"""What stands in a repository's folder: models, versions, and a signature of each that changes when it does.

Nothing is read but folders and the facts that the file system keeps of each file. Their times are only
compared with one another, never with a clock, so clocks may jump and files may come from the future.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from serving.artifact import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, is_version
from serving.errors import ArtifactError
from serving.model_settings import SETTINGS_FILE

if TYPE_CHECKING:
    from pathlib import Path

# One file: device, inode, size, times of content and of inode; None where there is none. The last is set by
# the kernel on any change, so a copy that keeps a file's time (`cp -p`) is seen too.
_FileSignature: TypeAlias = "tuple[int, int, int, int, int] | None"
Signature: TypeAlias = tuple[_FileSignature, ...]


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
        with os.scandir(repository) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
        models = {name: _scan_model(repository / name) for name in sorted(names)}
    except OSError as error:
        raise ArtifactError(
            f"the repository {repository} cannot be read ({error.strerror}); give --repository the folder "
            "that `foldserve export` wrote to"
        ) from error
    return {name: model for name, model in models.items() if model.versions or model.fault}


def find_versions(repository: Path) -> dict[str, list[int]]:
    """Return the versions of each model under ``repository``, both in order; raises as `scan`."""
    return {name: list(model.versions) for name, model in scan(repository).items() if model.versions}


def _scan_model(folder: Path) -> FoundModel:
    # Strings, not paths: a server of a thousand models comes by here a thousand times a second.
    path = str(folder)
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
        versions = sorted(int(name) for name in names if is_version(name))
        signed = {version: _sign_version(f"{path}/{version}") for version in versions}
        settings = (_sign(f"{path}/{SETTINGS_FILE}"),)
    except OSError as error:
        return FoundModel(folder, {}, fault=f"its folder cannot be read: {error.strerror or error}")
    ignored = tuple(sorted(name for name in names if not is_version(name) and not name.startswith(".")))
    return FoundModel(folder, signed, settings, ignored)


def _sign_version(path: str) -> Signature:
    return tuple([_sign(f"{path}/{name}") for name in (MANIFEST_FILE, MODEL_FILE, GOLDEN_FILE)])


def _sign(path: str) -> _FileSignature:
    try:
        facts = os.stat(path)  # noqa: PTH116  # see above
    except OSError:
        return None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
