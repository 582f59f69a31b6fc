"""Gives memory that large messages took back to the system once they are gone.

The C library (glibc) keeps what is freed for the next allocation: after 40 refused messages of 30 MiB the
process had 220 MiB more than before. Mapping each block of 1 MiB anew instead costs 6 ms for 5 MiB, four
times what reading them takes. So what is free at the end of a heap goes back at once if it is much, which
costs nothing measurable, and what is free between blocks in use when the process has grown.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING

from serving.background import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

_MIB = 1024 * 1024
# glibc's numbers for "larger blocks come from the system and go back to it" and "so much at the end of a heap
# goes back". By itself it learns both from the first large block that is freed; setting one ends that.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
# Growth below this is left alone: trimming costs page faults when the memory is needed again.
_LEAST_GROWTH_BYTES = 32 * _MIB
_LOOK_EVERY_S = 1.0


class FreedMemory:
    """Trims the heap when the process has grown since it was last small.

    Args:
        resident: returns the bytes of the process that are in memory.
        trim: gives back what is free.
    """

    def __init__(self, resident: Callable[[], int], trim: Callable[[], None]) -> None:
        self._resident = resident
        self._trim = trim
        self._least_bytes = resident()

    def look(self) -> bool:
        """Trim if there is a reason to, and return whether it was done."""
        now_bytes = self._resident()
        if now_bytes < self._least_bytes + _LEAST_GROWTH_BYTES:
            self._least_bytes = min(self._least_bytes, now_bytes)
            return False
        self._trim()
        self._least_bytes = self._resident()  # what is still there is in use
        return True


async def give_back_freed_memory() -> None:
    """Set glibc's limits, and look once a second until cancelled."""
    with contextlib.suppress(AttributeError, OSError):
        adjust = ctypes.CDLL(None).mallopt
        adjust(_M_MMAP_THRESHOLD, 32 * _MIB)
        adjust(_M_TRIM_THRESHOLD, 16 * _MIB)
    memory = FreedMemory(resident_bytes, trim_heap)
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        await run_in_thread(memory.look, "trim")


def resident_bytes() -> int:
    """Return how many bytes of this process are in memory; 0 if the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def trim_heap() -> None:
    """Give the free memory of the C library back to the system; nothing happens unless it is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
