"""Writes a small data set as FOLDER/{train,test}/CLASS/*, which appears when it is complete."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from PIL.Image import Image

# So many that a standard deviation at 90 % is a point; of what is drawn there are as many as wanted.
TEST_COUNT = 1000


class DataUnavailableError(Exception):
    """A data set cannot be made here; the message says why, and what would help."""


def write_folder(folder: Path, images: Iterable[tuple[str, str, str, Image]]) -> Path:
    """Write ``images``, each with its split, class and file name; return ``folder``.

    Raises:
        DataUnavailableError: what they are made from is not there.
    """
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    for split, label, name, image in images:
        place = partial / split / label
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / name)
    partial.rename(folder)
    return folder
