"""Turns the values of one row of a table into an item, by one rule for all kinds of tables."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from foldserve.errors import ImageError
from foldserve.tables.items import Item
from foldserve.text import quote

if TYPE_CHECKING:
    from pathlib import Path

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_WHOLE_NUMBER = re.compile(r"(-?[0-9]+)(\.0*)?")


def row_item(folder: Path, name: str, image: bytes | str, label: object, split: str, *, where: str) -> Item:
    """Return the item of a row; if its values cannot be used, it says why.

    ``image`` is the encoded image, or the path of its file, relative to ``folder``.
    """
    try:
        found = _label(label)
        content = image if isinstance(image, bytes) else _file(folder, image)
    except ImageError as error:
        return Item(name, b"", where=where, error=str(error), split=split)
    return Item(name, content, found, where, split=split)


def whole_number(text: str) -> str | None:
    """Return "3" for "3" and "3.0", which a column of numbers becomes if one of its values is missing."""
    found = _WHOLE_NUMBER.fullmatch(text)
    return found[1] if found else None


def _label(value: object) -> str | int | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str | int | None):
        return value
    # It may be a whole picture, and each row of a table may have one.
    raise ImageError(f"has a label that is neither text nor a whole number: {quote(str(value))}")


def _file(folder: Path, name: str) -> Path:
    """Return the file; where ``name`` is written as on Windows, the one that it means."""
    if _URL.match(name):
        raise ImageError("is a URL, and only files are read: download it first")
    path = folder / name
    if "\\" in name and not os.path.lexists(path):
        meant = folder / name.replace("\\", "/")
        return meant if os.path.lexists(meant) else path
    return path
