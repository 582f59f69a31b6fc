"""Finds or downloads the files of a data set, trying one place after another.

If a folder is given, only that one is used. Otherwise the places are the cache, an installed Debian package,
mirrors, and Debian's package unpacked without root. Downloaded files are written to the cache, or to a
temporary folder if there is no cache. A place is used only if all its files are read and pass their checks;
files of different places are not mixed.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from foldserve.training.datasets.debian import unpacked_package
from foldserve.training.datasets.download import download
from foldserve.training.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from foldserve.terminal import Terminal

    Arrays = dict[str, NDArray[np.uint8]]

NO_HOME = "there is no home folder; set XDG_CACHE_HOME to have one"


class SourceFile(Protocol):
    """A file of a data set that can be checked: its name as it is distributed, and how to read it."""

    @property
    def packed_name(self) -> str:
        """Name of the file as it is distributed."""

    @property
    def limit_bytes(self) -> int:
        """Largest possible size in bytes of the file as it is distributed."""

    def read(self, folder: Path) -> NDArray[np.uint8]:
        """Read and check the file, packed or unpacked, in ``folder``; raise DatasetError if a check fails."""

    def read_packed(self, path: Path) -> NDArray[np.uint8]:
        """Read and check the file as it is distributed; raise DatasetError if a check fails."""


@dataclass(frozen=True)
class Source:
    """The places of a data set; ``files`` maps the name of a part ("train_images") to its file."""

    name: str
    files: Mapping[str, SourceFile]
    package_folder: Path | None = None
    package: str | None = None
    mirrors: tuple[str, ...] = field(default=())


def cache_folder(name: str) -> Path | None:
    """Return the folder to cache a data set in: ``$XDG_CACHE_HOME/foldserve/NAME``, or under ``~/.cache``.

    None if there is no home folder: neither ``HOME`` nor an entry for the user in the password database.
    """
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if Path(configured).is_absolute():  # the XDG specification says to ignore relative paths
        return Path(configured) / "foldserve" / name
    try:
        return Path.home() / ".cache" / "foldserve" / name
    except RuntimeError:
        return None


def read_source(source: Source, *, folder: Path | None, cache: Path | None, terminal: Terminal) -> Arrays:
    """Return the arrays of ``source`` by part, from the first place that has all of them undamaged.

    Raises:
        DatasetError: ``folder`` or, if it is None, each place lacks a file or has a damaged one; the message
            has the reason for each place.
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
        except OSError as error:  # probably a full disk
            reasons.append(f"{place}: {error.filename or cache}: {error.strerror or error}")
            terminal.say(f"{source.name} not from {reasons[-1]}")
        else:
            terminal.say(f"{source.name} from {place}")
            return arrays
    names = ", ".join(file.packed_name for file in source.files.values())
    raise DatasetError(
        f"{source.name} was not found; put {names} into a folder and give it with --data-dir "
        f"(tried: {'; '.join(reasons)})"
    )


def _read_folder(source: Source, folder: Path) -> Arrays:
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist")
    return {part: file.read(folder) for part, file in source.files.items()}


def _fetch(source: Source, mirror: str, cache: Path | None, terminal: Terminal) -> Arrays:
    """Download the files that the cache lacks or has damaged from ``mirror``, and check each of them."""
    with _folder_to_fill(cache, terminal) as folder:
        return {part: _fetch_file(file, mirror, folder, terminal) for part, file in source.files.items()}


def _fetch_file(file: SourceFile, mirror: str, cache: Path, terminal: Terminal) -> NDArray[np.uint8]:
    try:
        return file.read(cache)
    except DatasetError:
        pass  # missing or damaged: download it
    part = cache / f"{file.packed_name}.part"
    resumed = part.exists()
    url = mirror.rstrip("/") + f"/{file.packed_name}"
    download(url, part, limit_bytes=file.limit_bytes, terminal=terminal)
    try:
        array = file.read_packed(part)
    except DatasetError:
        part.unlink(missing_ok=True)
        if not resumed:
            raise DatasetError(f"{url} is not the expected file, or was damaged on the way") from None
        # The bytes from an earlier attempt may be the damaged ones: download once more from the start.
        return _fetch_file(file, mirror, cache, terminal)
    # Readers prefer the packed file to an unpacked one beside it, which may be the damaged one.
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
    """Yield the cache, locked by this process, or a temporary folder if there is no cache.

    Other processes wait, and then find the cache filled.
    """
    with ExitStack() as stack:
        try:
            if cache is None:
                raise FileNotFoundError(NO_HOME)  # handled like a folder that cannot be created
            cache.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((cache / ".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # closing the file releases the lock
            folder = cache
        except OSError as error:
            place = error.filename or cache
            terminal.say(
                f"downloads are not cached: {f'{place}: ' if place else ''}{error.strerror or error}"
            )
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="foldserve-")))
        yield folder
