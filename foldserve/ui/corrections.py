"""Keeps pictures that were labelled wrongly in a folder that `foldserve train` takes: FOLDER/LABEL/*.

A picture's name is the hash of its content, so that no two collide and the same picture is kept once, under
the label that was given last. Files appear complete: they are written under a hidden name, then renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foldserve.imaging import ImageError, read_picture
from foldserve.imaging.image_files import is_hidden
from foldserve.replacing import write_replacing
from foldserve.text import is_legible, quote
from foldserve.ui.errors import UiError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PICTURES = 10_000
MAX_BYTES = 2**30
# Most labels that a folder can have: whoever reaches the page may type new ones.
MAX_LABELS = 2000
# File systems allow names of 255 bytes.
_MAX_NAME_BYTES = 200
# What file systems or shells of some system do not take in a name, and the sign that encodes it.
_UNSAFE = frozenset('/\\:*?"<>|%')
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp"}
_DIGEST_CHARACTERS = 32


@dataclass(frozen=True)
class Kept:
    """Where a picture was kept, and how many there are now. ``moved_from`` is its earlier label's folder."""

    path: Path
    count: int
    moved_from: str = ""


class Corrections:
    """Adds pictures with their right labels to a folder. Methods may be called from any thread."""

    def __init__(
        self,
        folder: Path,
        *,
        max_pictures: int = MAX_PICTURES,
        max_bytes: int = MAX_BYTES,
        max_labels: int = MAX_LABELS,
    ) -> None:
        """Use ``folder``, which is made if it is missing.

        Raises:
            UiError: the folder cannot be made or written to.
        """
        self.folder = folder
        self._max_pictures = max_pictures
        self._max_bytes = max_bytes
        self._max_labels = max_labels
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UiError(f"--keep {folder} cannot be made: {error.strerror}") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UiError(f"--keep {folder} cannot be written to; choose another folder, or change its owner")

    def keep(self, picture: bytes, label: str) -> Kept:
        """Write ``picture`` under ``label``; a picture that lies under another label is moved.

        Raises:
            UiError: the label cannot name a folder, the bytes are no picture, the folder is full, or the
                disk fails.
        """
        name = folder_name(label)
        try:
            suffix = _SUFFIXES[read_picture(picture).kind]
        except ImageError as error:
            raise UiError(str(error)) from error
        file = hashlib.sha256(picture).hexdigest()[:_DIGEST_CHARACTERS] + suffix
        with self._lock:
            try:
                return self._keep(picture, name, file)
            except OSError as error:
                _remove_if_empty(self.folder / name)
                raise UiError(f"the picture was not kept: {error.strerror or error}") from error

    def _keep(self, picture: bytes, name: str, file: str) -> Kept:
        place = self.folder / name
        kept = list(self._pictures())
        earlier = [Path(entry.path) for entry in kept if entry.name == file]
        others = [path for path in earlier if path != place / file]
        if not earlier:
            self._check_room(kept, len(picture))
        self._check_label(name)
        if place.is_symlink():
            raise UiError(f"{place} is a link; replace it by a folder")
        place.mkdir(exist_ok=True)
        if others:
            others[0].replace(place / file)
        elif not earlier:
            write_replacing(place / file, picture, durable=True)
        moved_from = others[0].parent.name if others else ""
        if others:
            _remove_if_empty(others[0].parent)
        return Kept(place / file, len(kept) + (not earlier), moved_from)

    def _check_room(self, kept: list[os.DirEntry[str]], byte_count: int) -> None:
        """Raise UiError if another picture would be one too many."""
        total = sum(entry.stat().st_size for entry in kept) + byte_count
        if len(kept) >= self._max_pictures or total > self._max_bytes:
            raise UiError(
                f"{self.folder} is full: it has {len(kept):,} pictures, and at most {self._max_pictures:,} "
                f"pictures or {self._max_bytes >> 20:,} MiB are kept; train with them, then move them away"
            )

    def _check_label(self, name: str) -> None:
        """Raise UiError if another label would be one too many."""
        with os.scandir(self.folder) as places:
            labels = [entry.name for entry in places if entry.is_dir()]
        if name not in labels and len(labels) >= self._max_labels:
            raise UiError(
                f"{self.folder} has {len(labels):,} labels, the most that are kept; use one of them"
            )

    def _pictures(self) -> Iterator[os.DirEntry[str]]:
        """Yield the pictures kept; other files are left alone and do not count."""
        with os.scandir(self.folder) as places:
            folders = [place.path for place in places if place.is_dir(follow_symlinks=False)]
        for folder in folders:
            with os.scandir(folder) as entries:
                yield from (
                    entry
                    for entry in entries
                    if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False)
                )


def _remove_if_empty(folder: Path) -> None:
    """Remove a label's folder if no picture is left in it: `train` refuses a label without pictures."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def folder_name(label: str) -> str:
    """Return the name of the folder for ``label``.

    Different labels have different names, apart from spaces around them and ways to write an accent.
    Characters that may not stand in a name on some system, such as the slash of "T-shirt/top", are written as
    %2F, as in addresses on the web. No name is hidden, or leads out of the folder that it is in.

    Raises:
        UiError: the label is empty, too long, or has control characters.
    """
    label = unicodedata.normalize("NFC", label).strip()
    if not label:
        raise UiError("the right label is empty; choose one of the model's labels, or type a new one")
    if not is_legible(label):
        raise UiError(f"the label {quote(label)} has control characters; type it again")
    name = "".join(f"%{ord(each):02X}" if each in _UNSAFE else each for each in label)
    if is_hidden(name):  # also "." and ".."
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if name.endswith("."):  # which Windows drops
        name = f"{name[:-1]}%2E"
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise UiError(f"the label {quote(label)} is too long for a folder's name; use a shorter one")
    return name
