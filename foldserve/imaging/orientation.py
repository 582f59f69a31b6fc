"""Reads the orientation of a picture from its EXIF or XMP metadata.

Nothing else is read, and the number of steps is bounded by the length, so that metadata that is damaged or
made to be expensive does no harm. Unreadable metadata counts as missing.
"""

from __future__ import annotations

import re
import struct

UPRIGHT = 1

_EXIF_HEADER = b"Exif\0\0"
_ORIENTATION = 0x0112
_ENTRY_BYTES = 12
# struct formats of the integer types of an entry; cameras write SHORT, some editors write others.
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([1-8])\s*[\"'<]")


def read_orientation(exif: bytes, xmp: bytes) -> int:
    """Return the orientation, 1 to 8 as EXIF defines it, from EXIF or else XMP; UPRIGHT if neither has one.

    Args:
        exif: a TIFF structure, with or without the prefix "Exif"; empty if there is none.
        xmp: an XMP packet; empty if there is none.
    """
    return _from_exif(exif) or _from_xmp(xmp) or UPRIGHT


def _from_exif(exif: bytes) -> int | None:
    while exif.startswith(_EXIF_HEADER):  # some editors write it twice
        exif = exif[len(_EXIF_HEADER) :]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return None
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    if start + 2 > len(exif):
        return None
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    there = (len(exif) - start - 2) // _ENTRY_BYTES
    for index in range(min(count, there)):
        entry = start + 2 + index * _ENTRY_BYTES
        tag, kind, value_count = struct.unpack_from(f"{order}HHI", exif, entry)
        if tag != _ORIENTATION:
            continue
        if kind not in _INTEGERS or not 1 <= value_count <= 4 // struct.calcsize(_INTEGERS[kind]):
            return None  # more values would not fit into the entry
        (value,) = struct.unpack_from(order + _INTEGERS[kind], exif, entry + 8)
        return int(value) if 1 <= value <= 8 else None
    return None


def _from_xmp(xmp: bytes) -> int | None:
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else None
