"""Which folder was meant, where the one given as repository holds no models."""

from __future__ import annotations

import difflib
import os
from itertools import islice
from typing import TYPE_CHECKING

from foldserve.artifact.format import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, is_folder, list_versions
from foldserve.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

# Folders that are looked into for models; a home folder may hold thousands.
_LOOKED_INTO = 100


def check_is_repository(folder: Path) -> None:
    """Raise ArtifactError where a folder without models is a model's own, or a version's.

    Raises:
        ArtifactError: it is; the message names the folder to give.
    """
    # Resolved, "." has a parent too; as it was given, it is easier to recognise.
    above = folder.parent if folder.name not in {"", ".."} else folder.resolve().parent
    if _is_version(folder):
        kind, repository = "one version of a model", above.parent if above.name else above.resolve().parent
        alone = " (`foldserve serve --model-name NAME` serves one version alone)"
    elif any(_is_version(folder / str(version)) for version in _versions(folder)):
        kind, repository, alone = "a model's own folder", above, ""
    else:
        return
    raise ArtifactError(
        f"{folder} is {kind}, not a repository, which holds NAME/VERSION/{MODEL_FILE}{alone}: give "
        f"--repository {repository}"
    )


def explain_emptiness(repository: Path) -> str:
    """Say that there are no models in a folder, and where some are if they are one level down."""
    try:
        inside = sorted(islice(repository.iterdir(), _LOOKED_INTO))
    except OSError:  # said by who reads it for its models
        inside = []
    nearby = next((entry for entry in inside if is_folder(entry) and _has_models(entry)), None)
    if nearby is not None:
        return f"there are no models in {repository}, but in {nearby}: give --repository {nearby}"
    how = "has no NAME/VERSION/ that can be read" if inside else "is empty"
    return f"the repository {how}: `foldserve export --repository {repository}` writes models there"


def suggest_folder(missing: Path) -> str:
    """Return "; did you mean ...?" where a folder beside a missing one has nearly its name, else ""."""
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
    return any(os.path.isfile(folder / name) for name in (MODEL_FILE, MANIFEST_FILE, GOLDEN_FILE))  # noqa: PTH113  # Path's raises where it may not look
