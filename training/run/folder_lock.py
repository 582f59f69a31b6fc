"""Keeps a folder of training to one process at a time."""

from __future__ import annotations

import fcntl
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

from foldserve.training.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK_FILE = ".lock"


@contextmanager
def locked_folder(path: Path, *, named: str, busy: str) -> Iterator[None]:
    """Create ``path`` unless it is there, and hold its lock while the context lasts.

    Args:
        path: the folder.
        named: what a message calls it, such as "run folder".
        busy: what another process that holds the lock does, such as "is training into".

    Raises:
        RunError: the folder cannot be written, or another process holds the lock.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"\0")
        lock = (path / LOCK_FILE).open("w")
    except OSError as error:
        raise RunError(
            f"the {named} {path} cannot be written: {error.strerror or error}; use another --run-dir"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"another process {busy} {path}; use another --run-dir") from None
        yield
