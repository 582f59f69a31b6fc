"""Suggests the right --repository if the given folder holds no models."""

from __future__ import annotations

import difflib
import os
from itertools import islice
from typing import TYPE_CHECKING

from foldserve.artifact.format import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE
from foldserve.artifact.versions import is_folder, list_versions
from foldserve.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

# Most folders to search for models; a home folder may hold thousands.
_LOOKED_INTO = 100


def check_is_repository(folder: Path) -> None:
    """Check that a folder without models is not the folder of a model or of a version.

    Raises:
        ArtifactError: it is one; the message names the folder to give instead.
    """
    # Resolved only if necessary: the path as it was given is easier to recognise.
    above = folder.parent if folder.name not in {"", ".."} else folder.resolve().parent
    if _is_version(folder):
        kind, repository = "a version of a model", above.parent if above.name else above.resolve().parent
        alone = " (`foldserve serve --model-name NAME` serves one version alone)"
    elif any(_is_version(folder / str(version)) for version in _versions(folder)):
        kind, repository, alone = "the folder of one model", above, ""
    else:
        return
    raise ArtifactError(
        f"{folder} is {kind}; a repository holds NAME/VERSION/{MODEL_FILE}{alone}: give "
        f"--repository {repository}"
    )


def explain_emptiness(repository: Path) -> str:
    """Return a message that the folder has no models, with the subfolder that has some, if any."""
    try:
        inside = sorted(islice(repository.iterdir(), _LOOKED_INTO))
    except OSError:  # reported by `scan`
        inside = []
    nearby = next((entry for entry in inside if is_folder(entry) and _has_models(entry)), None)
    if nearby is not None:
        return f"there are no models in {repository}, but there are in {nearby}: give --repository {nearby}"
    how = "has no readable NAME/VERSION/ folder" if inside else "is empty"
    return f"the repository {how}: `foldserve export --repository {repository}` writes models there"


def suggest_folder(missing: Path) -> str:
    """Return "; did you mean ...?" if a folder beside the missing one has a similar name, else ""."""
    if missing.exists():
        return ""
    try:
        beside = [entry.name for entry in islice(missing.parent.iterdir(), _LOOKED_INTO) if is_folder(entry)]
    except OSError:
        return ""
    near = difflib.get_close_matches(missing.name, beside, n=1)
    return f"; did you mean {missing.parent / near[0]}?" if near else ""


def _has_models(folder: Path) -> bool:
    try:
        models = [model for model in islice(folder.iterdir(), _LOOKED_INTO) if is_folder(model)]
    except OSError:
        return False
    return any(_is_version(model / str(version)) for model in models for version in _versions(model))


def _versions(folder: Path) -> list[int]:
    try:
        return list_versions(folder)
    except OSError:
        return []


def _is_version(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in (MODEL_FILE, MANIFEST_FILE, GOLDEN_FILE))  # noqa: PTH113  # Path's raises without permission
