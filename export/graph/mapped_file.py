"""Keeps arrays in a temporary file that is mapped into memory, instead of in memory.

Pages that are mapped from a file can leave memory, and come back by themselves when something reads them.
"""

from __future__ import annotations

import mmap
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_ALIGNMENT = 64  # bytes, as PyTorch's own allocator


class MappedFile:
    """Holds copies of arrays in a file without a name, which ends with this object and all views of it."""

    def __init__(self, arrays: Iterable[NDArray[Any]]) -> None:
        """Write ``arrays`` one behind another, reading each only when it is its turn.

        Raises:
            OSError: there is no folder for temporary files, or its disk is full.
        """
        self.places: list[int] = []  # where the bytes of each array begin
        with tempfile.TemporaryFile(prefix="foldserve-") as file:
            for array in arrays:
                file.seek(-file.tell() % _ALIGNMENT, 1)
                self.places.append(file.tell())
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            file.flush()  # what does not fit on the disk is an error here, and a signal in mapped memory
            self.memory = mmap.mmap(file.fileno(), 0)

    def release(self) -> None:
        """Let the pages leave memory; whatever reads the arrays next brings them back from the file."""
        if sys.platform == "linux":
            self.memory.madvise(mmap.MADV_DONTNEED)
