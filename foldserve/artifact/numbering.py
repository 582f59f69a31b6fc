"""Numbers the versions of a model so that no number ever means two of them: ``NAME/last_version.json``.

The next version is one above the highest that there is or ever was. What there was is told by the file,
which lies beside the version folders as ``promoted.json`` does, and which publishing and deleting a version
write. A model without the file, such as a folder copied without it, goes on from the versions there are.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

from foldserve.artifact.promotion import MAX_VERSION
from foldserve.artifact.versions import list_versions
from foldserve.errors import ArtifactError
from foldserve.files import read_regular_file
from foldserve.replacing import write_replacing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LAST_VERSION_FILE = "last_version.json"

_LOCK_FILE = ".lock"
_MAX_BYTES = 4096


class _LastVersion(BaseModel, frozen=True, strict=True, extra="forbid"):
    schema_version: Literal[1] = 1
    last_version: Annotated[int, Field(ge=1, le=MAX_VERSION)]


def last_version(model_folder: Path, within: Path | None = None) -> int:
    """Return the highest number that a version of the model has, or had as far as is known; 0 if none.

    ``within`` is the repository, which links must not lead out of; None if the files are trusted.

    Raises:
        ArtifactError: the file with the number cannot be read, or is malformed.
    """
    if not model_folder.is_dir():
        return 0
    recorded = 0
    if os.path.lexists(model_folder / LAST_VERSION_FILE):
        content = read_regular_file(model_folder / LAST_VERSION_FILE, within, _MAX_BYTES)
        try:
            recorded = _LastVersion.model_validate_json(content).last_version
        except ValidationError as error:
            fault = error.errors(include_url=False, include_context=False)[0]
            place = ".".join(map(str, fault["loc"])) or "the file"
            raise ArtifactError(
                f"{model_folder / LAST_VERSION_FILE} is malformed: {place}: {fault['msg']}; write "
                '{"schema_version": 1, "last_version": N} with the highest number that a version of this '
                "model ever had, or remove the file to go on from the versions that there are"
            ) from None
    return max([recorded, *(version for version in list_versions(model_folder) if version <= MAX_VERSION)])


def record_version(model_folder: Path, version: int) -> None:
    """Record that ``version`` is the highest number so far, whatever becomes of it.

    Raises:
        OSError: the folder cannot be written.
        ArtifactError: no server takes so high a number.
    """
    if version > MAX_VERSION:
        raise ArtifactError(
            f"{model_folder} has no number left for a version: the highest is {MAX_VERSION}; give the next "
            "version another name"
        )
    content = _LastVersion(last_version=version).model_dump_json(indent=2)
    write_replacing(model_folder / LAST_VERSION_FILE, content + "\n", durable=True)


@contextmanager
def changing(model_folder: Path) -> Iterator[None]:
    """Keep other commands from changing the model's promotions and versions meanwhile; they wait.

    Raises:
        OSError: the folder cannot be opened, or its file system has no locks.
    """
    with ExitStack() as stack:
        try:
            # On the folder itself, so that no file of the lock stays behind.
            stack.enter_context(_locked(model_folder, os.O_RDONLY | os.O_DIRECTORY))
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            # NFS locks only what is open for writing, which a folder cannot be.
            stack.enter_context(_locked(model_folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT))
        yield


@contextmanager
def _locked(path: Path, flags: int) -> Iterator[None]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
