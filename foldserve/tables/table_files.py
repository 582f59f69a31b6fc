"""Finds the tables that a path names or holds."""

from __future__ import annotations

from pathlib import Path

from foldserve.imaging.image_files import holds_images, is_hidden, visible_folders
from foldserve.tables.open_table import TABLE_SUFFIXES
from foldserve.tables.splits import role_of

SEPARATOR = ","


def find_tables(place: Path) -> list[Path]:
    """Return the tables that ``place`` is, names or holds; none if it is something else.

    A folder that has folders of classes in it is a folder of images, also with tables beside them.

    Raises:
        ImageError: a folder cannot be listed.
    """
    if _is_table(place) and place.is_file():  # perhaps with a comma in its name
        return [place]
    parts = named_tables(place)
    if parts and all(part.is_file() for part in parts):
        return parts
    if not place.is_dir():
        return []
    folders = visible_folders(place)
    tables = sorted(path for path in place.iterdir() if _is_table(path) and not is_hidden(path.name))
    if not tables:
        # As Hugging Face's repositories have their files in data/.
        is_wrapped = len(folders) == 1 and not holds_images(place)
        return find_tables(folders[0]) if is_wrapped and not visible_folders(folders[0]) else []
    has_classes = any(visible_folders(path) for path in folders) or (
        sum(holds_images(path) and role_of(path.name) is None for path in folders) > 1
    )
    return [] if has_classes else tables


def named_tables(place: Path) -> list[Path]:
    """Return the tables that ``place`` names with commas between; none if it names something else."""
    parts = [Path(part) for part in str(place).split(SEPARATOR)]
    return parts if len(parts) > 1 and all(map(_is_table, parts)) else []


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in TABLE_SUFFIXES
