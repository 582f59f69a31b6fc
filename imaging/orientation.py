"""How a picture has to be turned, from whatever metadata it carries.

Only the orientation is read, in a number of steps that the length bounds: a field that is damaged elsewhere,
or a directory made to be expensive, costs the picture nothing. What cannot be read is as good as not there.
"""

from __future__ import annotations

import re
import struct

UPRIGHT = 1

_EXIF_HEADER = b"Exif\0\0"
_ORIENTATION = 0x0112
_ENTRY_BYTES = 12
# How an entry's type spells a whole number; cameras write SHORT, some editors others.
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([1-8])\s*[\"'<]")


def read_orientation(exif: bytes, xmp: bytes) -> int:
    """Return 1 to 8 as EXIF defines them, from EXIF, else from XMP; UPRIGHT where neither says so.

    Args:
        exif: a TIFF structure, behind "Exif" or not; empty where there is none.
        xmp: an XMP packet; empty where there is none.
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
            return None  # more values do not fit into the entry
        (value,) = struct.unpack_from(order + _INTEGERS[kind], exif, entry + 8)
        return int(value) if 1 <= value <= 8 else None
    return None


def _from_xmp(xmp: bytes) -> int | None:
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else None
