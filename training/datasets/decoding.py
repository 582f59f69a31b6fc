"""Decodes many image files at once, by `prepare_image`, and keeps the pixels for the next time.

The cache is ``KEY.npy``, uint8 [N, C, H, W] of the readable images, memory-mapped when it is used, beside
``KEY.json``, the unreadable ones and a hash of the pixels. The key is a hash of everything that the pixels
depend on: the files' names and *contents*, how they are prepared, and the code that prepares them. Times and
sizes say nothing of a picture (archives and image layers set them all alike), and the folder adds nothing:
the same contents under the same names are the same pixels wherever they lie.

Pillow decodes and hashlib hashes outside Python's global lock, so threads are enough.
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
from foldserve.text import escaped
from foldserve.training.datasets.sources import NO_HOME, cache_folder
from foldserve.training.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from foldserve.terminal import Terminal

# Part of the key: raise it when the layout of the cache changes.
_VERSION = 2
_GREY_MODES = frozenset({"1", "L", "LA", "I;16", "I;16B", "I;16L"})
# EXIF orientations from this on turn the picture by a quarter.
_QUARTER_TURN = 5
_PORTION = 32
# Pixels are hashed in parts of about this size, side by side.
_HASHED_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class PictureFile:
    """A file by its ``path``, its ``name`` within the data set, and the SHA-256 of its content."""

    path: Path
    name: str
    digest: bytes


@dataclass(frozen=True)
class Decoded:
    """Pixels uint8 [R, C, H, W] of the readable files, bool [N] which those are, why the others are not."""

    images: NDArray[np.uint8]
    readable: NDArray[np.bool_]
    unreadable: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ImageKind:
    """What an image file's header says; sides in pixels."""

    height: int
    width: int
    is_grey: bool


def inspect_images(paths: Sequence[Path]) -> list[ImageKind]:
    """Return the kinds of those of ``paths`` whose header can be read."""
    with ThreadPoolExecutor(_worker_count()) as pool:
        return [kind for kind in pool.map(_inspect, paths, chunksize=64) if kind is not None]


def read_digests(folder: Path, paths: Sequence[Path], terminal: Terminal) -> list[PictureFile]:
    """Return ``paths``, which are in ``folder``, with the digests of their contents."""
    # Some at a time: handing a small file to a thread takes as long as hashing it.
    portions = [paths[start : start + _PORTION] for start in range(0, len(paths), _PORTION)]
    digests: list[bytes] = []
    with ThreadPoolExecutor(_worker_count()) as pool, terminal.counting("reading", len(paths)) as advance:
        for portion in pool.map(lambda portion: [_digest_of_file(path) for path in portion], portions):
            digests += portion
            advance(len(portion))
    names = [str(path.relative_to(folder)) for path in paths]
    return [PictureFile(*facts) for facts in zip(paths, names, digests, strict=True)]


def decode_all(files: Sequence[PictureFile], spec: ImageSpec, terminal: Terminal) -> Decoded:
    """Return the pixels of ``files``, prepared as ``spec`` says.

    They come from the cache where nothing has changed; a cache that cannot be written is done without.

    Raises:
        DatasetError: a file has changed since its digest was taken.
    """
    key, cache = _cache_key(files, spec), cache_folder("image-folders")
    try:
        if cache is None:
            terminal.say(f"decoded images are not kept: {NO_HOME}")
        else:
            cache.mkdir(parents=True, exist_ok=True)
            with _locked(cache / f"{key}.lock"):
                if (cached := _read_cache(cache, key, files, spec)) is not None:
                    return cached
                return _fill_cache(cache, key, files, spec, terminal)
    except OSError as error:
        terminal.say(f"decoded images are not kept: {error.filename or cache}: {error.strerror or error}")
    images = np.empty((len(files), *spec.shape), np.uint8)
    return _compact(images, _decode(files, spec, images, terminal), files)


def _fill_cache(
    cache: Path, key: str, files: Sequence[PictureFile], spec: ImageSpec, terminal: Terminal
) -> Decoded:
    """Decode straight into the file, so that what is larger than the memory can be decoded too."""
    sibling, compacted, listed = (cache / f".{key}.{os.getpid()}.{letter}" for letter in "abc")
    shape = (len(files), *spec.shape)
    try:
        with sibling.open("wb") as stream:
            np.lib.format.write_array_header_1_0(
                stream, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            # A mapped page that the disk has no room for would end the process: take the room first.
            os.posix_fallocate(stream.fileno(), stream.tell(), int(np.prod(shape)))
        images = np.load(sibling, mmap_mode="r+")
        reasons = _decode(files, spec, images, terminal)
        images.flush()
        decoded = _compact(images, reasons, files)
        if reasons:  # the rows of unreadable files are cut out, so the file is written once more
            with compacted.open("wb") as stream:
                np.save(stream, decoded.images)
            compacted.replace(sibling)
        facts = {"unreadable": decoded.unreadable, "pixels": _digest_of_pixels(decoded.images)}
        listed.write_text(json.dumps(facts))
        listed.replace(cache / f"{key}.json")
        sibling.replace(cache / f"{key}.npy")  # last: where it is, all is
    finally:
        for path in (sibling, compacted, listed):
            path.unlink(missing_ok=True)
    if not decoded.readable.any():
        return decoded  # nothing can be mapped
    # Mapped anew, as the next run will: copies on write, where what it was written through would change it.
    return Decoded(_map(cache / f"{key}.npy"), decoded.readable, decoded.unreadable)


def _read_cache(cache: Path, key: str, files: Sequence[PictureFile], spec: ImageSpec) -> Decoded | None:
    """Return what is cached; None where nothing is, or something else than was put there."""
    if not (cache / f"{key}.npy").exists():
        return None
    try:
        facts = json.loads((cache / f"{key}.json").read_text())
        unreadable = tuple((str(name), str(reason)) for name, reason in facts["unreadable"])
        images, expected = _map(cache / f"{key}.npy"), facts["pixels"]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    without = {name for name, _ in unreadable}
    readable = np.array([file.name not in without for file in files])
    is_whole = images.dtype == np.uint8 and images.shape == (readable.sum(), *spec.shape)
    if not is_whole or _digest_of_pixels(images) != expected:
        return None
    return Decoded(images, readable, unreadable)


def _map(file: Path) -> NDArray[np.uint8]:
    # Copy on write: torch wants memory that could be written, the file stays as it is.
    images: NDArray[np.uint8] = np.load(file, mmap_mode="c")
    return images


def _decode(
    files: Sequence[PictureFile], spec: ImageSpec, images: NDArray[np.uint8], terminal: Terminal
) -> dict[int, str]:
    """Decode each of ``files`` into its row of ``images``; return why the unreadable ones are, by index."""

    def decode_one(index: int) -> str | None:
        file = files[index]
        try:
            content = file.path.read_bytes()
        except OSError as error:
            return error.strerror or str(error)
        if hashlib.sha256(content).digest() != file.digest:
            raise DatasetError(
                f"{escaped(str(file.path))} has changed while the folder was being read; run again when "
                "nothing writes into it"
            )
        try:
            images[index] = prepare_image(content, spec)
        except ImageError as error:
            return str(error)
        return None

    reasons = {}
    with ThreadPoolExecutor(_worker_count()) as pool, terminal.counting("decoding", len(files)) as advance:
        for index, reason in enumerate(pool.map(decode_one, range(len(files)))):
            advance(1)
            if reason is not None:
                reasons[index] = reason
    return reasons


def _compact(images: NDArray[np.uint8], reasons: dict[int, str], files: Sequence[PictureFile]) -> Decoded:
    readable = np.array([index not in reasons for index in range(len(files))])
    unreadable = tuple((files[index].name, reason) for index, reason in reasons.items())
    return Decoded(images[readable] if reasons else images, readable, unreadable)


def _inspect(path: Path) -> ImageKind | None:
    try:
        picture = read_picture(path.read_bytes())
        with open_picture(picture) as image:
            width, height = image.size
            mode = image.mode
    except Exception:  # Pillow raises many kinds; decoding will say which files are unreadable
        return None
    if picture.orientation >= _QUARTER_TURN:
        width, height = height, width
    return ImageKind(height, width, is_grey=mode in _GREY_MODES)


def _cache_key(files: Sequence[PictureFile], spec: ImageSpec) -> str:
    made_by = [_VERSION, PIL.__version__, _preparing_code(), asdict(spec)]
    digest = hashlib.sha256(json.dumps(made_by).encode())
    for file in files:
        digest.update(json.dumps([file.name, file.digest.hex()]).encode())
    return digest.hexdigest()[:32]


def _preparing_code() -> str:
    """Return a hash of the code that prepares images, so that a new rule gives new pixels."""
    digest = hashlib.sha256()
    for file in sorted(Path(imaging.__path__[0]).glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _digest_of_file(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        return f"unreadable: {error.errno}".encode()


def _digest_of_pixels(images: NDArray[np.uint8]) -> str:
    """Return a hash of ``images`` [N, ...]: of the hashes of its parts."""
    rows = max(1, _HASHED_BYTES // max(1, images[:1].nbytes))
    parts = [images[start : start + rows] for start in range(0, len(images), rows)]
    with ThreadPoolExecutor(_worker_count()) as pool:
        digests = list(pool.map(lambda part: hashlib.sha256(part).digest(), parts))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _worker_count() -> int:
    return max(2, len(os.sched_getaffinity(0)))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time decode a folder; the others wait and then find it decoded."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield  # closing the file gives the lock back
