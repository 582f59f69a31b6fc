"""Finds the image files of a class, and tells which files are left out.

Names that begin with a dot are ignored, as are folders that operating systems create. Subfolders are
searched, but links to folders are not followed: they may form a cycle, or lead to an image twice.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from foldserve.errors import ImageError
from foldserve.imaging import image_files
from foldserve.imaging.image_files import IMAGE_SUFFIXES, is_hidden, is_image_name
from foldserve.imaging.left_out import LeftOut
from foldserve.text import escaped
from foldserve.training.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = [
    "IMAGE_SUFFIXES",
    "LeftOut",
    "dataset_errors",
    "find_pictures",
    "holds_pictures",
    "is_hidden",
    "is_picture",
    "unwrapped",
    "visible_folders",
]


def find_pictures(folder: Path, left_out: LeftOut) -> list[Path]:
    """Return the image files in ``folder`` and its subfolders, sorted by path.

    Raises:
        DatasetError: a folder cannot be listed.
    """
    found = []
    for place, folders, files in os.walk(folder, onerror=_refuse_unlisted):
        here = Path(place)
        inside: list[str] = []
        for name in folders:
            (files if is_hidden(name) or (here / name).is_symlink() else inside).append(name)
        for path in (here / name for name in files):
            if is_picture(path):
                found.append(path)
            else:
                left_out.add(str(path))
        folders[:] = inside
    return sorted(found)


def visible_folders(folder: Path) -> list[Path]:
    """Return the folders in ``folder`` that are not hidden, sorted by name.

    Raises:
        DatasetError: ``folder`` cannot be listed.
    """
    with dataset_errors():
        return image_files.visible_folders(folder)


def holds_pictures(folder: Path) -> bool:
    """Return whether there are image files in ``folder`` itself.

    Raises:
        DatasetError: ``folder`` cannot be listed.
    """
    with dataset_errors():
        return image_files.holds_images(folder)


def unwrapped(folder: Path, labels: Collection[str] = ()) -> Path:
    """Return ``folder``, or the only folder in it, again and again, unless that is one of ``labels``.

    Raises:
        DatasetError: a folder cannot be listed.
    """
    with dataset_errors():
        return image_files.unwrapped(folder, labels)


def is_picture(path: Path) -> bool:
    """Return whether ``path`` is an image file by its suffix, and not hidden."""
    return is_image_name(path.name) and path.is_file()


@contextmanager
def dataset_errors() -> Iterator[None]:
    """Raise what common ground says of a folder as the error of a data set."""
    try:
        yield
    except ImageError as error:
        raise DatasetError(str(error)) from error


def _refuse_unlisted(error: OSError) -> None:
    name = escaped(os.fsdecode(error.filename or "a folder"))
    raise DatasetError(
        f"{name} cannot be listed: {error.strerror or error}; change its permissions or remove it"
    ) from error
