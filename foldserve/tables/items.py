"""Defines one image to label, and reads its bytes from wherever they are."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foldserve.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path

# No camera writes larger files; a table or folder may name a disk image by mistake.
MAX_FILE_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source.

    Attributes:
        name: what its row is called: the path as the source gives it.
        content: the encoded image, or the path of the file that holds it.
        label: the label as the source writes it; None if it gives none.
        where: for messages, the file and line that name it; "" for a file in a folder.
        error: why the source's entry cannot be used; "" if it can.
        split: the split that the source writes; "" if it gives none.
    """

    name: str
    content: bytes | Path | str
    label: str | int | None = None
    where: str = ""
    error: str = ""
    split: str = ""

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            ImageError: the entry is wrong, or its file is missing, too large or cannot be read.
        """
        if self.error:
            raise ImageError(self.error)
        return self.content if isinstance(self.content, bytes) else read_image_file(self.content)


def read_image_file(path: Path | str) -> bytes:
    """Return the content of an image file.

    Raises:
        ImageError: it is missing, not a regular file, larger than `MAX_FILE_BYTES`, or cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise ImageError("is not a file")
            if facts.st_size > MAX_FILE_BYTES:
                raise ImageError(f"has {facts.st_size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
            return _read(descriptor, facts.st_size)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise ImageError("the file does not exist") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _read(descriptor: int, size: int) -> bytes:
    """Return the first ``size`` bytes; a file object would take three times as long for a small image."""
    content = os.read(descriptor, size)
    while len(content) < size and (more := os.read(descriptor, size - len(content))):
        content += more
    return content
