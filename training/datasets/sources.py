"""Finds or fetches the files of a data set, trying one source after another.

In this order: a given folder (then nothing else is tried: what was asked for is what is used), the cache, an
installed Debian package, mirrors, Debian's package unpacked without root. What is fetched goes to the cache,
or is read from a temporary folder where there is none.
A source counts only when all its files are read and checked; nothing is mixed or half used.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from training.datasets.debian import unpacked_package
from training.datasets.download import download
from training.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from training.terminal import Terminal

    Arrays = dict[str, NDArray[np.uint8]]

NO_HOME = "there is no home folder; set XDG_CACHE_HOME to have one"


class SourceFile(Protocol):
    """A file of a data set, known exactly: what it is called where it is handed out, and how to read it."""

    @property
    def packed_name(self) -> str:
        """Name of the file as it is handed out."""

    @property
    def limit_bytes(self) -> int:
        """Length in bytes that it cannot exceed."""

    def read(self, folder: Path) -> NDArray[np.uint8]:
        """Read and check it, packed or unpacked, in ``folder``; raise DatasetError if it is not sound."""

    def read_packed(self, path: Path) -> NDArray[np.uint8]:
        """Read and check it as it was handed out; raise DatasetError if it is not sound."""


@dataclass(frozen=True)
class Source:
    """Where a data set may be found; ``files`` maps a part's name ("train_images") to its file."""

    name: str
    files: Mapping[str, SourceFile]
    package_folder: Path | None = None
    package: str | None = None
    mirrors: tuple[str, ...] = field(default=())


def cache_folder(name: str) -> Path | None:
    """Return where a data set is cached: ``$XDG_CACHE_HOME/foldserve/NAME``, or under ``~/.cache``.

    None where there is no home: no ``HOME``, and a user without an entry that names one.
    """
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if Path(configured).is_absolute():  # the XDG specification: a relative path is to be ignored
        return Path(configured) / "foldserve" / name
    try:
        return Path.home() / ".cache" / "foldserve" / name
    except RuntimeError:
        return None


def read_source(source: Source, *, folder: Path | None, cache: Path | None, terminal: Terminal) -> Arrays:
    """Return the arrays of ``source`` by part, from the first place that has all of them sound.

    Raises:
        DatasetError: the given ``folder`` does not have them, or no place does; with a reason for each.
    """
    if folder is not None:
        return _read_folder(source, folder)
    places: list[tuple[str, Callable[[], Arrays]]] = [
        *((f"cache {c}", lambda c=c: _read_folder(source, c)) for c in [cache] if c),
        *(
            (f"installed package {p}", lambda p=p: _read_folder(source, p))
            for p in [source.package_folder]
            if p
        ),
        *((f"mirror {url}", lambda url=url: _fetch(source, url, cache, terminal)) for url in source.mirrors),
        *(
            (f"Debian package {p}", lambda p=p: _unpack(source, p, cache, terminal))
            for p in [source.package]
            if p
        ),
    ]
    reasons = []
    for place, read in places:
        try:
            arrays = read()
        except DatasetError as error:
            reasons.append(f"{place}: {error}")
            terminal.say(f"{source.name} not from {reasons[-1]}")
        except OSError as error:  # a full disk, most likely
            reasons.append(f"{place}: {error.filename or cache}: {error.strerror or error}")
            terminal.say(f"{source.name} not from {reasons[-1]}")
        else:
            terminal.say(f"{source.name} from {place}")
            return arrays
    names = ", ".join(file.packed_name for file in source.files.values())
    raise DatasetError(
        f"{source.name} was found nowhere; put {names} into a folder and give it with --data-dir "
        f"(tried: {'; '.join(reasons)})"
    )


def _read_folder(source: Source, folder: Path) -> Arrays:
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist")
    return {part: file.read(folder) for part, file in source.files.items()}


def _fetch(source: Source, mirror: str, cache: Path | None, terminal: Terminal) -> Arrays:
    """Bring what the cache lacks or holds damaged from ``mirror``; check each file, then put it in place."""
    with _folder_to_fill(cache, terminal) as folder:
        return {part: _fetch_file(file, mirror, folder, terminal) for part, file in source.files.items()}


def _fetch_file(file: SourceFile, mirror: str, cache: Path, terminal: Terminal) -> NDArray[np.uint8]:
    try:
        return file.read(cache)
    except DatasetError:
        pass  # absent or damaged: fetched anew
    part = cache / f"{file.packed_name}.part"
    resumed = part.exists()
    url = mirror.rstrip("/") + f"/{file.packed_name}"
    download(url, part, limit_bytes=file.limit_bytes, terminal=terminal)
    try:
        array = file.read_packed(part)
    except DatasetError:
        part.unlink(missing_ok=True)
        if not resumed:
            raise DatasetError(f"{url} is not the file expected, or arrived damaged") from None
        # The bytes it was resumed from may have been the damaged ones: once more from the start.
        return _fetch_file(file, mirror, cache, terminal)
    # A packed file comes before an unpacked one beside it, which may have been the damaged one.
    part.replace(cache / file.packed_name)
    return array


def _unpack(source: Source, package: str, cache: Path | None, terminal: Terminal) -> Arrays:
    with _folder_to_fill(cache, terminal) as filled, unpacked_package(package) as root:
        assert source.package_folder is not None
        folder = root / source.package_folder.relative_to("/")
        arrays = _read_folder(source, folder)
        for file in source.files.values():
            part = filled / f"{file.packed_name}.part"
            part.write_bytes((folder / file.packed_name).read_bytes())
            part.replace(filled / file.packed_name)
        return arrays


@contextmanager
def _folder_to_fill(cache: Path | None, terminal: Terminal) -> Iterator[Path]:
    """Yield the cache, for this process alone, or a temporary folder where there is none to be had.

    Other processes wait, and then find the cache filled.
    """
    with ExitStack() as stack:
        try:
            if cache is None:
                raise FileNotFoundError(NO_HOME)  # taken as any folder that is not to be had
            cache.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((cache / ".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # closing the file gives it back
            folder = cache
        except OSError as error:
            place = error.filename or cache
            terminal.say(
                f"what is fetched is not kept: {f'{place}: ' if place else ''}{error.strerror or error}"
            )
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="foldserve-")))
        yield folder
