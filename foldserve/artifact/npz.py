"""Reads arrays from an untrusted npz archive, and checks their sizes before it decompresses them.

The sizes declared in an archive may be wrong. Python's zipfile decompresses no more of a member than its
declared size; numpy allocates as much as an array's header asks for, so the two are compared first.
"""

from __future__ import annotations

import io
import math
import threading
import zipfile
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# An archive of arrays has few members; reading a directory of a million takes seconds.
_MAX_MEMBERS = 64
_PART_BYTES = 2**20
_DIRECTORY_ENTRY = b"PK\x01\x02"
# numpy parses a header as Python, and CPython's parser may raise SystemError if two threads use it at once
# (github.com/python/cpython/issues/106905): a sound file would be refused.
_PARSING = threading.Lock()


class _Header(NamedTuple):
    """A member's header and its length in bytes."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]
    byte_count: int


def read_arrays(content: bytes, names: Sequence[str], max_bytes: int) -> dict[str, NDArray[Any]]:
    """Return the named arrays, of at most ``max_bytes`` bytes in total; others are not decompressed.

    Raises:
        ValueError: the arrays are too large, or the archive is malformed.
        KeyError: an array is missing.
        zipfile.BadZipFile, OSError, zlib.error: the archive is malformed.
    """
    if content.count(_DIRECTORY_ENTRY) > _MAX_MEMBERS:
        raise ValueError(f"it has more than {_MAX_MEMBERS} members, the limit")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.getinfo(f"{name}.npy") for name in names}
        total_bytes = sum(member.file_size for member in members.values())
        if total_bytes > max_bytes:
            raise ValueError(
                f"its arrays would have {total_bytes} bytes decompressed; the limit is {max_bytes}"
            )
        headers = {}
        for name, member in members.items():
            with archive.open(member) as stream:
                headers[name] = _read_header(name, stream, member.file_size)
        arrays = {}
        for name, member in members.items():
            with archive.open(member) as stream:
                arrays[name] = _read_array(headers[name], stream, member.file_size)
    return arrays


def _read_array(header: _Header, stream: IO[bytes], size: int) -> NDArray[Any]:
    """Return a member's array; ``size`` is that of the member.

    Raises:
        ValueError: the member ends before that.
    """
    stream.read(header.byte_count)
    content = bytearray(size - header.byte_count)
    at = 0
    while at < len(content):  # in parts, so that there are no two of all of it
        part = stream.read(min(_PART_BYTES, len(content) - at))
        if not part:
            raise ValueError(f"it ends {len(content) - at} bytes before its declared size")
        content[at : at + len(part)] = part
        at += len(part)
    order: Literal["F", "C"] = "F" if header.is_fortran else "C"
    return np.ndarray(header.shape, header.dtype, content, order=order)


def _read_header(name: str, stream: IO[bytes], size: int) -> _Header:
    """Return a member's header.

    Raises:
        ValueError: it does not declare exactly the bytes that follow it.
    """
    version = np.lib.format.read_magic(stream)
    if version not in _READ_HEADER:
        raise ValueError(f"{name} has format {version}; expected one of {sorted(_READ_HEADER)}")
    with _PARSING:
        shape, is_fortran, dtype = _READ_HEADER[version](stream)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects")
    asked_bytes = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or asked_bytes != size - stream.tell():
        raise ValueError(f"{name} declares {asked_bytes} bytes but has {size - stream.tell()}")
    return _Header(shape, is_fortran, dtype, stream.tell())
