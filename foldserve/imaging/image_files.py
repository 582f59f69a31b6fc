"""Finds the image files in a folder, in order, in bounded memory.

Names that begin with a dot are ignored, as are folders that operating systems create. Subfolders are
searched, but links to folders are not followed: they may form a cycle, or lead to an image twice.
"""

from __future__ import annotations

import heapq
import os
from typing import TYPE_CHECKING

from foldserve.errors import ImageError
from foldserve.text import escaped

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})
# Created by macOS in archives, by Synology for thumbnails, by Windows and Linux in the root of a disk.
_SYSTEM_NAMES = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})

# Names of one folder held at a time, some 10 MB. A folder of more is listed again for each further part.
_NAMES_HELD = 50_000


def walk_images(folder: Path, names_held: int = _NAMES_HELD) -> Iterator[str]:
    """Yield the image files below ``folder``, relative to it, ordered by the parts of their paths.

    At most ``names_held`` names per level are held, however many files there are. Files that are added or
    removed meanwhile may be missed, but no file is yielded twice.

    Raises:
        ImageError: a folder cannot be listed.
    """
    levels = [("", _entries(folder, "", names_held))]
    while levels:
        above, entries = levels[-1]
        entry = next(entries, None)
        if entry is None:
            levels.pop()
            continue
        name, is_folder = entry
        path = f"{above}{name}"
        if is_folder:
            levels.append((f"{path}/", _entries(folder, path, names_held)))
        else:
            yield path


def is_hidden(name: str) -> bool:
    """Tell whether files and folders of this name are ignored."""
    return name.startswith(".") or name in _SYSTEM_NAMES


def is_image_name(name: str) -> bool:
    """Tell whether a file of this name is an image by its suffix, and not hidden."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not is_hidden(name)  # noqa: PTH122  # a million names


def _entries(folder: Path, inside: str, names_held: int) -> Iterator[tuple[str, bool]]:
    """Yield the name of each image file and folder in one folder, sorted, and whether it is a folder."""
    place = str(folder / inside)
    last = ""
    while True:
        part = heapq.nsmallest(names_held, _listed(place, last))
        yield from part
        if len(part) < names_held:
            return
        last = part[-1][0]


def _listed(place: str, last: str) -> Iterator[tuple[str, bool]]:
    """Yield what `_entries` does, unsorted, of the names after ``last``."""
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name <= last or is_hidden(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield entry.name, True
                elif is_image_name(entry.name) and entry.is_file():
                    yield entry.name, False
    except OSError as error:
        raise ImageError(
            f"{escaped(place)} cannot be listed: {error.strerror or error}; change its permissions or "
            "remove it"
        ) from error
