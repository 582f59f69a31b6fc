"""Finds the versions in a model's folder: folders named 1, 2, 3, ..."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from pathlib import Path


def list_versions(model_folder: Path) -> list[int]:
    """Return the versions under ``model_folder``, ascending; folders with other names are ignored."""
    return sorted(
        int(entry.name) for entry in model_folder.iterdir() if is_version(entry.name) and is_folder(entry)
    )


def is_version(name: str) -> bool:
    """Tell whether a name is a version's: a positive integer without leading zeros."""
    return name.isascii() and name.isdigit() and name[0] != "0"


def is_folder(path: Path | os.DirEntry[str]) -> bool:
    """Tell whether a path is a folder; also True if that cannot be determined."""
    try:
        return path.is_dir()
    except OSError:  # no permission, or a broken disk: reading it reports the error
        return True
