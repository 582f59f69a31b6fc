"""Reads files of an untrusted repository: only regular files inside it.

A path is checked before it is opened, as opening a FIFO blocks and opening a device may have effects. The
opened file is then checked again, so that exchanging a link in between gains nothing.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from foldserve.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator


# Device, inode, size, mtime and ctime in ns. The kernel sets the ctime on any change, so a copy that keeps
# the mtime (`cp -p`) is detected too.
FileFingerprint: TypeAlias = tuple[int, int, int, int, int]


def file_fingerprint(path: str | Path) -> FileFingerprint | None:
    """Return numbers that change when a file is written or replaced; None if there is no file.

    The file is not read. A dangling link has the fingerprint of the link.
    """
    for look in (os.stat, os.lstat):
        try:
            facts = look(path)
        except OSError:
            continue
        return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
    return None


def read_regular_file(path: Path, within: Path | None, most_bytes: int) -> bytes:
    """Return the content of a file, which must lie in the folder ``within`` if that is given.

    Raises:
        ArtifactError: the file is missing, unreadable, not a regular file, larger than ``most_bytes``, or
            reached by links that lead out of ``within``. The message is shown to callers.
    """
    with _opened(path, within) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > most_bytes:
            raise ArtifactError(f"{path.name} has {size} bytes; it may have {most_bytes} at most")
        with open(descriptor, "rb", closefd=False) as stream:
            return stream.read(size)  # bytes appended meanwhile belong to another version of the file


def size_inside(path: Path, within: Path | None) -> int:
    """Return the size of a file in bytes; raises ArtifactError as `read_regular_file` does."""
    with _opened(path, within) as descriptor:
        return os.fstat(descriptor).st_size


@contextmanager
def _opened(path: Path, within: Path | None) -> Iterator[int]:
    """Open a regular file inside ``within``; turns OSErrors, also those of the body, into ArtifactError."""
    try:
        if within is not None:
            _check_inside(path, path, within)
        _check_regular(path, path.stat())
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        try:
            _check_regular(path, os.fstat(descriptor))
            opened = Path(f"/proc/self/fd/{descriptor}")  # Linux: a link to the opened file
            if within is not None and opened.exists():
                _check_inside(path, opened, within)
            yield descriptor
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise ArtifactError(f"{path.name} is missing from the version's folder") from None
    except OSError as error:
        raise ArtifactError(f"{path.name} cannot be read: {error.strerror or error}") from error


def _check_regular(path: Path, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise ArtifactError(f"{path.name} is not a regular file; replace it by a copy of the file")


def _check_inside(path: Path, where: Path, within: Path) -> None:
    if not Path(os.path.realpath(where)).is_relative_to(os.path.realpath(within)):
        raise ArtifactError(
            f"{path.name} is reached through a symbolic link that leads out of the repository; only files "
            "inside it are read: replace the link by a copy of the file"
        )
