"""Bounds the folder in which the web framework puts uploaded files."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_BYTES = 512 * 1024 * 1024
# Each has a folder of its own.
MAX_FILES = 10_000


def prune(folder: Path, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> None:
    """Delete the oldest files in ``folder`` until the others are few and small enough, and their folders.

    A picture is read into memory when it is classified, so a deleted file is missed by nobody for long.
    """
    files = sorted(_files(folder), key=lambda entry: entry[0], reverse=True)
    total = 0
    for count, (_, size, path) in enumerate(files, 1):
        total += size
        if total > max_bytes or count > max_files:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it has more files
                path.parent.rmdir()


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Yield when each file was written, its size in bytes and its path."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = folder / place / name
            try:
                facts = path.stat()
            except OSError:  # deleted meanwhile
                continue
            yield facts.st_mtime, facts.st_size, path
