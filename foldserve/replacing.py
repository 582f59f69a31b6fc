"""Replaces files at once: written under a hidden name beside, then renamed, so readers see one or the other.

What an ended process was writing is left as ``.NAME.*.part``.
"""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield the path of a file to write in place of ``path``; it takes that name when the context ends.

    If the context raises, nothing is replaced and nothing is left. With ``durable`` the content and the name
    are on the disk at the end.

    Raises:
        OSError: the folder cannot be written, or the disk is full; it names ``path``.
    """
    # A name of its own for each writer: processes and threads may replace one file at the same time.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield beside
        if durable:
            _sync(beside)
        beside.replace(path)
    except OSError as error:
        # A full disk has no name, and nobody knows the one beside.
        if error.errno is None or error.filename not in (None, str(beside)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        beside.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def write_replacing(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Replace ``path`` by a file of ``content``; text is written as UTF-8.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    with replacing(path, durable=durable) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def sync_folder(folder: Path) -> None:
    """Have the names in ``folder`` written to disk."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
