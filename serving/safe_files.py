"""Reading files of a repository that strangers may have filled: regular ones, inside it, and nothing else.

What is checked is the file that was opened, not the path to it, so a link that is exchanged in between gains
nothing.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from serving.errors import ArtifactError


def read_inside(path: Path, within: Path | None, most_bytes: int) -> bytes:
    """Return the content of a file; with ``within``, only if the file really lies in that folder.

    Raises:
        ArtifactError: there is no such file, it cannot be read, it is no regular file, it is larger than
            ``most_bytes``, or links lead out of ``within``; the message is for whoever asked for the version.
    """
    try:
        # Opening a FIFO for reading would otherwise wait for a writer, for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise ArtifactError(f"{path.name} is missing from the version's folder") from None
    except OSError as error:
        raise ArtifactError(f"{path.name} cannot be read: {error.strerror or error}") from error
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ArtifactError(f"{path.name} is not a regular file; copy the file itself there")
        if within is not None:
            _check_inside(path, descriptor, within)
        size = os.fstat(descriptor).st_size
        if size > most_bytes:
            raise ArtifactError(f"{path.name} has {size} bytes; it may have {most_bytes} at most")
        try:
            return stream.read(size)  # what is written behind it meanwhile makes it another file
        except OSError as error:
            raise ArtifactError(f"{path.name} cannot be read: {error.strerror or error}") from error


def _check_inside(path: Path, descriptor: int, within: Path) -> None:
    opened = Path(f"/proc/self/fd/{descriptor}")  # a link to what was opened; Linux has it
    real = Path(os.path.realpath(opened if opened.exists() else path))
    if not real.is_relative_to(os.path.realpath(within)):
        raise ArtifactError(
            f"{path.name} is reached through a symbolic link that leads out of the repository; only files "
            "inside it are read: copy the file itself there"
        )
