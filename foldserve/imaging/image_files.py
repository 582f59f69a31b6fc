"""Finds the image files in a folder, in order, in bounded memory.

Names that begin with a dot are ignored, as are folders that operating systems create. Subfolders are
searched, but links to folders are only followed where the caller says so: they may form a cycle, or lead to
an image twice.
"""

from __future__ import annotations

import heapq
import os
import unicodedata
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from foldserve.errors import ImageError
from foldserve.text import escaped

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterator

    from foldserve.imaging.left_out import LeftOut

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})
# Created by macOS in archives, by Synology for thumbnails, by Windows and Linux in the root of a disk.
_SYSTEM_NAMES = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})

# Names of one folder held at a time, some 10 MB. A folder of more is listed again for each further part.
_NAMES_HELD = 50_000


def walk_images(
    folder: Path,
    names_held: int = _NAMES_HELD,
    *,
    links_in: Container[str] = (),
    left_out: LeftOut | None = None,
    with_broken_links: bool = False,
) -> Iterator[str]:
    """Yield the image files below ``folder``, relative to it, ordered by the parts of their paths.

    At most ``names_held`` names per level are held, however many files there are. Files that are added or
    removed meanwhile may be missed, but no file is yielded twice.

    Links to folders are followed that lie directly in one of the folders ``links_in``, which are relative to
    ``folder``; "" is ``folder`` itself. Broken links with names of images are yielded if
    ``with_broken_links``. What else is left out is counted in ``left_out``.

    Raises:
        ImageError: a folder cannot be listed.
    """

    def entries_of(inside: str) -> Iterator[tuple[str, bool]]:
        listed = partial(
            _listed,
            str(folder / inside),
            follow_links=inside in links_in,
            with_broken_links=with_broken_links,
            left_out=left_out,
        )
        return _entries(listed, names_held)

    levels = [("", entries_of(""))]
    while levels:
        above, entries = levels[-1]
        entry = next(entries, None)
        if entry is None:
            levels.pop()
            continue
        name, is_folder = entry
        path = f"{above}{name}"
        if is_folder:
            levels.append((f"{path}/", entries_of(path)))
        else:
            yield path


def visible_folders(folder: Path) -> list[Path]:
    """Return the folders in ``folder`` and the links to folders, sorted by name, without hidden ones.

    Raises:
        ImageError: ``folder`` cannot be listed.
    """
    with _listing(folder) as entries:
        return sorted(
            folder / entry.name for entry in entries if not is_hidden(entry.name) and _is(entry.is_dir)
        )


def unwrapped(folder: Path, labels: Collection[str] = ()) -> Path:
    """Return ``folder``, or the only folder in it, again and again, unless that is one of ``labels``.

    Archives are often packed so: data/train, seg_train/seg_train.

    Raises:
        ImageError: a folder cannot be listed.
    """
    while not holds_images(folder):
        inside = visible_folders(folder)
        if (
            len(inside) != 1
            or unicodedata.normalize("NFC", inside[0].name) in labels
            or not visible_folders(inside[0])
        ):
            break
        folder = inside[0]
    return folder


def holds_images(folder: Path) -> bool:
    """Tell whether there are image files in ``folder`` itself.

    Raises:
        ImageError: ``folder`` cannot be listed.
    """
    return next(_images_in(folder), None) is not None


def count_images(folder: Path) -> int:
    """Return the number of image files in ``folder`` itself.

    Raises:
        ImageError: ``folder`` cannot be listed.
    """
    return sum(1 for _ in _images_in(folder))


def is_hidden(name: str) -> bool:
    """Tell whether files and folders of this name are ignored."""
    return name.startswith(".") or name in _SYSTEM_NAMES


def is_image_name(name: str) -> bool:
    """Tell whether a file of this name is an image by its suffix, and not hidden."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not is_hidden(name)  # noqa: PTH122  # a million names


def _entries(
    listed: Callable[[str], Iterator[tuple[str, bool]]], names_held: int
) -> Iterator[tuple[str, bool]]:
    """Yield what ``listed`` does of the names after the one that it is given, sorted."""
    last = ""
    while True:
        part = heapq.nsmallest(names_held, listed(last))
        yield from part
        if len(part) < names_held:
            return
        last = part[-1][0]


def _listed(
    place: str, last: str, *, follow_links: bool, with_broken_links: bool, left_out: LeftOut | None
) -> Iterator[tuple[str, bool]]:
    """Yield the name of each image file and folder after ``last``, unsorted, and whether it is a folder."""
    with _listing(place) as entries:
        for entry in entries:
            if entry.name <= last:
                continue
            if not is_hidden(entry.name) and (
                entry.is_dir(follow_symlinks=False) or (follow_links and _is(entry.is_dir))
            ):
                yield entry.name, True
            elif is_image_name(entry.name) and (
                _is(entry.is_file) or (with_broken_links and not Path(entry.path).exists())
            ):
                yield entry.name, False
            elif left_out is not None and not last:  # listed again for later names, it is counted already
                left_out.add(entry.path)


def _images_in(folder: Path) -> Iterator[str]:
    with _listing(folder) as entries:
        for entry in entries:
            if is_image_name(entry.name) and _is(entry.is_file):
                yield entry.name


@contextmanager
def _listing(place: Path | str) -> Iterator[Iterator[os.DirEntry[str]]]:
    """Yield the entries of a folder, which are not held.

    Raises:
        ImageError: it cannot be listed.
    """
    try:
        with os.scandir(place) as entries:
            yield entries
    except OSError as error:
        raise ImageError(
            f"{escaped(str(place))} cannot be listed: {error.strerror or error}; change its permissions or "
            "remove it"
        ) from error


def _is(check: Callable[[], bool]) -> bool:
    """Return what ``check`` does; False for links that lead nowhere, such as to themselves."""
    try:
        return check()
    except OSError:
        return False
