"""Decodes image files in parallel with `prepare_image`, and caches the pixels.

The cache is ``KEY.npy``, uint8 [N, C, H, W] of the readable images, memory-mapped for use, and ``KEY.json``,
with the places of the unreadable ones and a hash of the pixels. The key is a hash of everything that the
pixels depend on: the names and *contents* of the files, how they are prepared, and the code that prepares
them. Modification times and sizes do not identify a picture (archives and image layers set all times alike).
The folder is not in the key: the same contents under the same names give the same pixels in any folder.

Pillow decodes and hashlib hashes without holding Python's global lock, so threads suffice. Pictures come from
an iterator, once per pass, as the path of a file or as the bytes that a table holds: a few are in memory at a
time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL

from foldserve import imaging
from foldserve.errors import ImageError
from foldserve.imaging import ImageSpec, open_picture, prepare_image, read_picture
from foldserve.ordered import in_chunks, run_in_order
from foldserve.tables.items import read_image_file
from foldserve.text import escaped
from foldserve.training.datasets.sources import NO_HOME, cache_folder
from foldserve.training.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from foldserve.terminal import Terminal

    Content = Path | str | bytes

# Part of the key; increment it if the layout of the cache changes.
_VERSION = 3
_GREY_MODES = frozenset({"1", "L", "LA", "I;16", "I;16B", "I;16L"})
# EXIF orientations from this one on swap height and width.
_QUARTER_TURN = 5
_PORTION = 32
# Of pictures that a table holds, which are in memory; as many portions as there are threads are, and more.
_PICTURES = 8
# Pixels are hashed in parallel, in parts of about this size.
_HASHED_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class PictureFile:
    """A picture: ``name`` within the data set, SHA-256 of its content, and for messages where it is named."""

    name: str
    digest: bytes
    where: str = ""

    def __str__(self) -> str:
        """Return the name for a message, with the file and line that give it, if a table does."""
        return (
            f"{self.where}: {escaped(self.name)}" if self.where not in ("", self.name) else escaped(self.name)
        )


@dataclass(frozen=True)
class Decoded:
    """Pixels uint8 [R, C, H, W] of the readable pictures, bool [N] which those are, reasons for the others.

    ``unreadable`` has the place and the reason of each picture that cannot be read.
    """

    images: NDArray[np.uint8]
    readable: NDArray[np.bool_]
    unreadable: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class ImageKind:
    """Height and width in pixels, whether the image is grey, and its format, from a file's header."""

    height: int
    width: int
    is_grey: bool
    format: str


def inspect_images(contents: Iterable[Content]) -> list[ImageKind]:
    """Return the kind of each picture whose header can be read."""
    chunks = in_chunks(contents, _PICTURES)
    kinds = run_in_order(chunks, lambda chunk: [_inspect(content) for content in chunk], worker_count())
    return [kind for chunk in kinds for kind in chunk if kind is not None]


def read_digests(contents: Iterable[Content], count: int, terminal: Terminal) -> list[bytes]:
    """Return the SHA-256 of each of ``count`` pictures; of one that cannot be read, another text."""
    # In portions, since handing a small file to a thread takes as long as hashing it.
    chunks = in_chunks(contents, _PORTION)
    digests: list[bytes] = []
    with terminal.counting("reading", count) as advance:
        for chunk in run_in_order(chunks, lambda chunk: [digest_of(one) for one in chunk], worker_count()):
            digests += chunk
            advance(len(chunk))
    return digests


def decode_all(
    files: Sequence[PictureFile],
    contents: Callable[[], Iterator[Content]],
    spec: ImageSpec,
    terminal: Terminal,
) -> Decoded:
    """Return the pixels of ``files``, prepared as ``spec`` says, from the cache if nothing has changed.

    ``contents`` begins a pass over them, in the order of ``files``.

    If the cache cannot be written, the pixels are not kept.

    Raises:
        DatasetError: a file has changed since its digest was taken.
    """
    key, cache = _cache_key(files, spec), cache_folder("image-folders")
    try:
        if cache is None:
            terminal.say(f"decoded images are not cached: {NO_HOME}")
        else:
            cache.mkdir(parents=True, exist_ok=True)
            with _locked(cache / f"{key}.lock"):
                if (cached := _read_cache(cache, key, files, spec)) is not None:
                    return cached
                return _fill_cache(cache, key, files, contents, spec=spec, terminal=terminal)
    except OSError as error:
        terminal.say(f"decoded images are not cached: {error.filename or cache}: {error.strerror or error}")
    images = np.empty((len(files), *spec.shape), np.uint8)
    return _compact(images, _decode(files, contents(), spec, images, terminal))


def _fill_cache(
    cache: Path,
    key: str,
    files: Sequence[PictureFile],
    contents: Callable[[], Iterator[Content]],
    *,
    spec: ImageSpec,
    terminal: Terminal,
) -> Decoded:
    """Decode directly into the cache file, so that the images may be larger than memory."""
    sibling, compacted, listed = (cache / f".{key}.{os.getpid()}.{letter}" for letter in "abc")
    shape = (len(files), *spec.shape)
    try:
        with sibling.open("wb") as stream:
            np.lib.format.write_array_header_1_0(
                stream, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            # Allocate first: a write to a mapped page for which the disk has no room kills the process.
            os.posix_fallocate(stream.fileno(), stream.tell(), int(np.prod(shape)))
        images = np.load(sibling, mmap_mode="r+")
        reasons = _decode(files, contents(), spec, images, terminal)
        images.flush()
        decoded = _compact(images, reasons)
        if reasons:  # write the file again, without the rows of unreadable files
            with compacted.open("wb") as stream:
                np.save(stream, decoded.images)
            compacted.replace(sibling)
        facts = {"unreadable": decoded.unreadable, "pixels": _digest_of_pixels(decoded.images)}
        listed.write_text(json.dumps(facts))
        listed.replace(cache / f"{key}.json")
        sibling.replace(cache / f"{key}.npy")  # last, so that if it exists, the cache is complete
    finally:
        for path in (sibling, compacted, listed):
            path.unlink(missing_ok=True)
    if not decoded.readable.any():
        return decoded  # an empty array cannot be mapped
    # Map it again, copy-on-write as in the next run: writes to the first mapping would change the file.
    return Decoded(_map(cache / f"{key}.npy"), decoded.readable, decoded.unreadable)


def _read_cache(cache: Path, key: str, files: Sequence[PictureFile], spec: ImageSpec) -> Decoded | None:
    """Return the cached pixels; None if there are none, or they are not those that were written."""
    if not (cache / f"{key}.npy").exists():
        return None
    try:
        facts = json.loads((cache / f"{key}.json").read_text())
        unreadable = tuple((int(place), str(reason)) for place, reason in facts["unreadable"])
        images, expected = _map(cache / f"{key}.npy"), facts["pixels"]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    without = {place for place, _ in unreadable}
    readable = np.array([place not in without for place in range(len(files))])
    is_whole = images.dtype == np.uint8 and images.shape == (readable.sum(), *spec.shape)
    if not is_whole or _digest_of_pixels(images) != expected:
        return None
    return Decoded(images, readable, unreadable)


def _map(file: Path) -> NDArray[np.uint8]:
    # Copy-on-write: torch requires writable memory, and the file must not change.
    images: NDArray[np.uint8] = np.load(file, mmap_mode="c")
    return images


def _decode(
    files: Sequence[PictureFile],
    contents: Iterator[Content],
    spec: ImageSpec,
    images: NDArray[np.uint8],
    terminal: Terminal,
) -> dict[int, str]:
    """Decode into ``images`` [N, C, H, W], and return the reason for each picture that cannot be read."""

    def decode_one(numbered: tuple[int, Content]) -> str | None:
        index, given = numbered
        try:
            content = given if isinstance(given, bytes) else read_image_file(given)
            if hashlib.sha256(content).digest() != files[index].digest:
                raise DatasetError(
                    f"{files[index]} has changed while the images were being read; run again when nothing "
                    "writes into them"
                )
            images[index] = prepare_image(content, spec)
        except ImageError as error:
            return str(error)
        return None

    reasons = {}
    with terminal.counting("decoding", len(files)) as advance:
        for index, reason in enumerate(run_in_order(enumerate(contents), decode_one, worker_count())):
            advance(1)
            if reason is not None:
                reasons[index] = reason
    return reasons


def _compact(images: NDArray[np.uint8], reasons: dict[int, str]) -> Decoded:
    readable = np.array([index not in reasons for index in range(len(images))])
    return Decoded(images[readable] if reasons else images, readable, tuple(reasons.items()))


def _inspect(content: Content) -> ImageKind | None:
    try:
        picture = read_picture(content if isinstance(content, bytes) else read_image_file(content))
        with open_picture(picture) as image:
            width, height = image.size
            mode, kind = image.mode, image.format or "unknown"
    except Exception:  # Pillow may raise any error; decoding reports which files are unreadable
        return None
    if picture.orientation >= _QUARTER_TURN:
        width, height = height, width
    return ImageKind(height, width, is_grey=mode in _GREY_MODES, format=kind)


def _cache_key(files: Sequence[PictureFile], spec: ImageSpec) -> str:
    made_by = [_VERSION, PIL.__version__, _preparing_code(), asdict(spec)]
    digest = hashlib.sha256(json.dumps(made_by).encode())
    for file in files:
        digest.update(json.dumps([file.name, file.digest.hex()]).encode())
    return digest.hexdigest()[:32]


def _preparing_code() -> str:
    """Return a hash of the code that prepares images, so that changed code does not find old pixels."""
    digest = hashlib.sha256()
    for file in sorted(Path(imaging.__path__[0]).glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def digest_of(given: Content) -> bytes:
    """Return the SHA-256 of a picture; if it cannot be read, a text that says why."""
    try:
        content = given if isinstance(given, bytes) else read_image_file(given)
    except ImageError as error:
        return f"unreadable: {error}".encode(errors="replace")
    return hashlib.sha256(content).digest()


def _digest_of_pixels(images: NDArray[np.uint8]) -> str:
    """Return a hash of ``images`` [N, ...], computed from hashes of its parts."""
    rows = max(1, _HASHED_BYTES // max(1, images[:1].nbytes))
    parts = [images[start : start + rows] for start in range(0, len(images), rows)]
    with ThreadPoolExecutor(worker_count()) as pool:
        digests = list(pool.map(lambda part: hashlib.sha256(part).digest(), parts))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def worker_count() -> int:
    """Return the number of threads that read and decode."""
    return max(2, len(os.sched_getaffinity(0)))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time decode a folder; other processes wait, and then find it in the cache."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield  # closing the file releases the lock
