"""Finds the image files in a folder, and counts the files that it leaves out by reason.

Names that begin with a dot are ignored, as are folders that operating systems create. Subfolders are
searched, but links to folders are not followed: they may form a cycle, or lead to an image twice.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from foldserve.errors import ImageError
from foldserve.imaging import image_files
from foldserve.imaging.image_files import IMAGE_SUFFIXES, is_hidden, is_image_name
from foldserve.text import escaped, join_first
from foldserve.training.errors import DatasetError

__all__ = [
    "IMAGE_SUFFIXES",
    "LeftOut",
    "find_pictures",
    "holds_pictures",
    "is_hidden",
    "is_picture",
    "visible_folders",
]

_NO_SUFFIX = "without a suffix"


@dataclass
class LeftOut:
    """Counts the files of ``folder`` that are left out; `lines` describes them."""

    folder: Path
    suffixes: Counter[str] = field(default_factory=Counter)
    hidden: list[Path] = field(default_factory=list)
    linked: list[Path] = field(default_factory=list)
    no_files: list[Path] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return a line per reason, with the number of files and the first names."""
        lines = list(self.others)
        if self.suffixes:
            ranked = sorted(
                self.suffixes.items(), key=lambda each: (-each[1], each[0] == _NO_SUFFIX, each[0])
            )
            listed = join_first([f"{count:,} {suffix}" for suffix, count in ranked])
            lines.append(f"{listed}; images are read from {', '.join(sorted(IMAGE_SUFFIXES))}")
        if self.linked:
            shown = [
                f"{self._named(path)} with {_count_pictures(path):,} images" for path in sorted(self.linked)
            ]
            lines.append(
                f"linked folders ({len(shown):,}): {join_first(shown)}; links inside a class are not "
                "followed: put the images there"
            )
        for what, paths in (
            ("hidden names and folders of the system", self.hidden),
            ("names that are not files, such as broken links", self.no_files),
        ):
            if paths:
                lines.append(
                    f"{what} ({len(paths):,}): {join_first([self._named(path) for path in sorted(paths)])}"
                )
        return lines

    def _named(self, path: Path) -> str:
        return escaped(os.path.relpath(path, self.folder))


def find_pictures(folder: Path, left_out: LeftOut) -> list[Path]:
    """Return the image files in ``folder`` and its subfolders, sorted by path.

    Raises:
        DatasetError: a folder cannot be listed.
    """
    found = []
    for place, folders, files in os.walk(folder, onerror=_refuse_unlisted):
        here = Path(place)
        left_out.hidden += [here / name for name in folders if is_hidden(name)]
        folders[:] = [name for name in folders if not is_hidden(name)]
        left_out.linked += [here / name for name in folders if (here / name).is_symlink()]
        for path in (here / name for name in files):
            if is_hidden(path.name):
                left_out.hidden.append(path)
            elif path.suffix.lower() not in IMAGE_SUFFIXES:
                left_out.suffixes[escaped(path.suffix.lower()) or _NO_SUFFIX] += 1
            elif not path.is_file():
                left_out.no_files.append(path)
            else:
                found.append(path)
    return sorted(found)


def visible_folders(folder: Path) -> list[Path]:
    """Return the folders in ``folder`` that are not hidden, sorted by name.

    Raises:
        DatasetError: ``folder`` cannot be listed.
    """
    try:
        return image_files.visible_folders(folder)
    except ImageError as error:
        raise DatasetError(str(error)) from error


def holds_pictures(folder: Path) -> bool:
    """Return whether there are image files in ``folder`` itself."""
    return any(is_picture(path) for path in folder.iterdir())


def is_picture(path: Path) -> bool:
    """Return whether ``path`` is an image file by its suffix, and not hidden."""
    return is_image_name(path.name) and path.is_file()


def _count_pictures(folder: Path) -> int:
    try:
        return sum(is_picture(path) for path in folder.iterdir())
    except OSError:
        return 0


def _refuse_unlisted(error: OSError) -> None:
    name = escaped(os.fsdecode(error.filename or "a folder"))
    raise DatasetError(
        f"{name} cannot be listed: {error.strerror or error}; change its permissions or remove it"
    ) from error
