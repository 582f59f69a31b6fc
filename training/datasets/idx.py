"""Reads the IDX format of MNIST and Fashion-MNIST: a magic number, the shape of an array, then its bytes.

byte 0-1  zero         byte 3     number of dimensions d
byte 2    0x08: uint8  byte 4-..  d sizes, big-endian uint32; then the values
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foldserve.training.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_UINT8 = 0x08
# gzip adds at most this to incompressible data: header, trailer and 5 bytes per 16 KiB block.
_GZIP_OVERHEAD_BYTES = 64 * 1024


@dataclass(frozen=True)
class IdxFile:
    """An expected file: its name without ``.gz``, its array's shape, and the SHA-256 of its unpacked content.

    The packed files differ between distributors (Debian strips the file name and time that gzip stores), the
    unpacked ones do not.
    """

    name: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def content_bytes(self) -> int:
        """Size in bytes of the unpacked file."""
        return 4 + 4 * len(self.shape) + math.prod(self.shape)

    @property
    def packed_name(self) -> str:
        """Name of the file as it is distributed."""
        return f"{self.name}.gz"

    @property
    def limit_bytes(self) -> int:
        """Largest possible size in bytes of the file as it is distributed."""
        return self.content_bytes + _GZIP_OVERHEAD_BYTES

    def read(self, folder: Path) -> NDArray[np.uint8]:
        """Read the file from ``folder``; see `read_idx`."""
        return read_idx(folder, self)

    def read_packed(self, path: Path) -> NDArray[np.uint8]:
        """Read the file as distributed from ``path``; see `read_idx_file`."""
        return read_idx_file(path, self)


def read_idx(folder: Path, expected: IdxFile) -> NDArray[np.uint8]:
    """Read ``expected`` from ``folder``, packed (``.gz``) or unpacked.

    Raises:
        DatasetError: the file is missing, unreadable, truncated, damaged, or not the expected one.
    """
    for path in (folder / f"{expected.name}.gz", folder / expected.name):
        if path.exists():
            return read_idx_file(path, expected)
    raise DatasetError(f"{folder} has no {expected.name}.gz (nor {expected.name})")


def read_idx_file(path: Path, expected: IdxFile) -> NDArray[np.uint8]:
    """Read ``path``, gzipped if its name ends with ``.gz`` or ``.part``, and check that it is ``expected``.

    Raises:
        DatasetError: as `read_idx`.
    """
    content = _read_content(path, expected.content_bytes)
    try:
        array = parse_idx(content, expected.shape)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected.sha256:
        raise DatasetError(
            f"{path} is damaged or not {expected.name}: the SHA-256 of its content is {actual}, "
            f"expected {expected.sha256}"
        )
    return array


def parse_idx(content: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the uint8 array in ``content``, which must have exactly ``shape``.

    Raises:
        DatasetError: the magic number, the shape or the length is another one.
    """
    header = struct.Struct(f">HBB{len(shape)}I")
    magic = f"0x0000{_UINT8:02x}{len(shape):02x}"
    if len(content) < header.size:
        raise DatasetError(f"{len(content)} bytes are too few for an IDX header of {header.size}")
    zero, datatype, dimensions, *sides = header.unpack_from(content)
    if (zero, datatype, dimensions) != (0, _UINT8, len(shape)):
        raise DatasetError(
            f"the magic number is 0x{content[:4].hex()}, expected {magic} ({len(shape)} dimensions)"
        )
    if tuple(sides) != shape:
        raise DatasetError(f"the array is {_by(sides)}, expected {_by(shape)}")
    if len(content) != header.size + math.prod(shape):
        raise DatasetError(
            f"{len(content) - header.size:,} bytes follow the header, expected {math.prod(shape):,}"
        )
    # A copy, since torch warns about read-only arrays such as those of frombuffer.
    return np.frombuffer(content, np.uint8, offset=header.size).reshape(shape).copy()


def _read_content(path: Path, limit: int) -> bytes:
    """Return at most ``limit`` + 1 bytes of the unpacked content, so that no bomb is unpacked."""
    try:
        if path.suffix in (".gz", ".part"):
            with gzip.open(path) as stream:
                return stream.read(limit + 1)  # reaching the end checks gzip's CRC and length
        with path.open("rb") as stream:
            return stream.read(limit + 1)
    except EOFError:
        raise DatasetError(f"{path} is cut short: its compressed data ends too early") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DatasetError(f"{path} is damaged or not a gzip file: {error}") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error


def _by(sides: tuple[int, ...] | list[int]) -> str:
    return " x ".join(f"{side:,}" for side in sides)
