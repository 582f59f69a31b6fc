"""Decodes many image files at once, by `imaging.prepare_image`, and keeps the pixels for the next time.

The cache of a folder is ``KEY.npy``, uint8 [N, C, H, W] of the readable images, memory-mapped when it is
used, beside ``KEY.json``, the unreadable ones. The key is a hash of everything that the pixels depend on:
names, sizes and times of the files, and how they are prepared. Pillow decodes outside Python's global lock,
so threads are enough.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from imaging import ImageError, ImageSpec, prepare_image
from training.datasets.sources import cache_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from training.terminal import Terminal

# Part of the key: raise it when the same files are to give other pixels.
_VERSION = 1
_GREY_MODES = frozenset({"1", "L", "LA", "I;16", "I;16B", "I;16L"})


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


def decode_all(folder: Path, paths: Sequence[Path], spec: ImageSpec, terminal: Terminal) -> Decoded:
    """Return the pixels of ``paths``, which are in ``folder``, prepared as ``spec`` says.

    They come from the cache where nothing has changed; a cache that cannot be written is done without.
    """
    names = [str(path.relative_to(folder)) for path in paths]
    key = _cache_key(names, paths, spec)
    cache = cache_folder("image-folders")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{key}.lock"):
            if (cached := _read_cache(cache, key, names)) is not None:
                return cached
            _fill_cache(cache / f"{key}.npy", paths, names, spec, terminal)
            decoded = _read_cache(cache, key, names)
            assert decoded is not None
            return decoded
    except OSError as error:
        terminal.say(f"decoded images are not kept: {error.filename or cache}: {error.strerror or error}")
    images = np.empty((len(paths), *spec.shape), np.uint8)
    return _compact(images, _decode(paths, spec, images, terminal), names)


def _fill_cache(
    file: Path, paths: Sequence[Path], names: Sequence[str], spec: ImageSpec, terminal: Terminal
) -> None:
    """Decode straight into the file, so that what is larger than the memory can be decoded too."""
    sibling, compacted, listed = (file.with_name(f".{file.stem}.{os.getpid()}.{n}") for n in ("a", "b", "c"))
    shape = (len(paths), *spec.shape)
    try:
        with sibling.open("wb") as stream:
            np.lib.format.write_array_header_1_0(
                stream, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            # A mapped page that the disk has no room for would end the process: take the room first.
            os.posix_fallocate(stream.fileno(), stream.tell(), int(np.prod(shape)))
        images = np.load(sibling, mmap_mode="r+")
        reasons = _decode(paths, spec, images, terminal)
        images.flush()
        if reasons:  # the rows of unreadable files are cut out, so the file is written once more
            with compacted.open("wb") as stream:
                np.save(stream, _compact(images, reasons, names).images)
            compacted.replace(sibling)
        listed.write_text(json.dumps([[names[index], reason] for index, reason in reasons.items()]))
        listed.replace(file.with_suffix(".json"))
        sibling.replace(file)  # last: where it is, all is
    finally:
        for path in (sibling, compacted, listed):
            path.unlink(missing_ok=True)


def _read_cache(cache: Path, key: str, names: Sequence[str]) -> Decoded | None:
    file = cache / f"{key}.npy"
    if not file.exists():
        return None
    unreadable = tuple((name, reason) for name, reason in json.loads((cache / f"{key}.json").read_text()))
    without = {name for name, _ in unreadable}
    readable = np.array([name not in without for name in names])
    try:
        # Copy on write: torch wants memory that could be written, the file stays as it is.
        images = np.load(file, mmap_mode="c")
    except ValueError:  # cut short, or written by something else: decoded anew
        return None
    if len(images) != readable.sum():
        return None
    return Decoded(images, readable, unreadable)


def _decode(
    paths: Sequence[Path], spec: ImageSpec, images: NDArray[np.uint8], terminal: Terminal
) -> dict[int, str]:
    """Decode each of ``paths`` into its row of ``images``; return why the unreadable ones are, by index."""

    def decode_one(index: int) -> str | None:
        try:
            images[index] = prepare_image(paths[index].read_bytes(), spec)
        except ImageError as error:
            return str(error)
        except OSError as error:
            return error.strerror or str(error)
        return None

    reasons = {}
    with ThreadPoolExecutor(_worker_count()) as pool, terminal.counting("decoding", len(paths)) as advance:
        for index, reason in enumerate(pool.map(decode_one, range(len(paths)))):
            advance(1)
            if reason is not None:
                reasons[index] = reason
    return reasons


def _compact(images: NDArray[np.uint8], reasons: dict[int, str], names: Sequence[str]) -> Decoded:
    readable = np.array([index not in reasons for index in range(len(names))])
    unreadable = tuple((names[index], reason) for index, reason in reasons.items())
    return Decoded(images[readable] if reasons else images, readable, unreadable)


def _inspect(path: Path) -> ImageKind | None:
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.getexif().get(0x0112, 1) >= 5:  # EXIF orientation: turned by a quarter
                width, height = height, width
            return ImageKind(height, width, is_grey=image.mode in _GREY_MODES)
    except Exception:  # Pillow raises many kinds; decoding will say which files are unreadable
        return None


def _cache_key(names: Sequence[str], paths: Sequence[Path], spec: ImageSpec) -> str:
    digest = hashlib.sha256(json.dumps([_VERSION, asdict(spec)]).encode())
    for name, path in zip(names, paths, strict=True):
        status = path.stat()
        digest.update(json.dumps([name, status.st_size, status.st_mtime_ns]).encode())
    return digest.hexdigest()[:32]


def _worker_count() -> int:
    return max(2, len(os.sched_getaffinity(0)))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time decode a folder; the others wait and then find it decoded."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield  # closing the file gives the lock back
