"""Returns the memory of large messages to the system after they are freed.

The C library (glibc) keeps freed memory for the next allocation: after 40 refused messages of 30 MiB the
process held 220 MiB more than before. Mapping each block of 1 MiB separately instead takes 6 ms for 5 MiB,
four times as long as reading them. So much free memory at the end of a heap is returned at once, which costs
nothing measurable, and free memory between used blocks is returned when the process has grown.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING

from foldserve.c_allocator import keep_freed_memory
from foldserve.runtime.session import give_back_memory
from foldserve.serving.background import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

_MIB = 1024 * 1024
_BLOCK_BYTES, _KEPT_BYTES = 32 * _MIB, 16 * _MIB
# Less growth is not worth trimming: it costs page faults when the memory is needed again.
_LEAST_GROWTH_BYTES = 32 * _MIB
_CHECK_EVERY_S = 1.0
# Bounds the pause between trims that free nothing: its square, in looks.
_MOST_FAILED = 8


class FreedMemory:
    """Trims the heap while the process is larger than it once was.

    What was in use during one look may be free at the next without a change of the process's size, so it is
    trimmed again. While that frees nothing, it is tried ever less often.

    Args:
        resident: returns the bytes of the process in memory.
        trim: returns free memory to the system.
    """

    def __init__(self, resident: Callable[[], int], trim: Callable[[], None]) -> None:
        self._resident = resident
        self._trim = trim
        self._least_bytes = self._last_bytes = resident()
        self._failed_count = 0  # trims in a row that freed next to nothing
        self._skipped_count = 0

    def trim_if_grown(self) -> bool:
        """Trim if the process has grown by 32 MiB, and return whether it was done."""
        now_bytes = self._resident()
        self._least_bytes = min(self._least_bytes, now_bytes)
        if now_bytes < self._least_bytes + _LEAST_GROWTH_BYTES:
            return False
        has_grown = now_bytes >= self._last_bytes + _LEAST_GROWTH_BYTES
        if not has_grown and self._skipped_count < self._failed_count**2 - 1:
            self._skipped_count += 1
            return False
        self._trim()
        self._last_bytes = self._resident()
        is_failed = now_bytes - self._last_bytes < _LEAST_GROWTH_BYTES / 4
        self._failed_count = min(self._failed_count + 1, _MOST_FAILED) if is_failed else 0
        self._skipped_count = 0
        return True


async def give_back_freed_memory() -> None:
    """Set glibc's limits, and check once per second until cancelled."""
    keep_freed_memory(block_bytes=_BLOCK_BYTES, kept_bytes=_KEPT_BYTES)
    memory = FreedMemory(resident_bytes, trim_heap)
    while True:
        await asyncio.sleep(_CHECK_EVERY_S)
        await run_in_thread(memory.trim_if_grown, "trim")


def resident_bytes() -> int:
    """Return the bytes of this process in memory; 0 if the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def trim_heap() -> None:
    """Return the C library's free memory to the system; does nothing unless it is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def return_memory() -> None:
    """Make ONNX Runtime and the C library (glibc) return freed memory to the system.

    Otherwise the memory of a large model stays with the process, in pieces too small for the next model.
    """
    give_back_memory()
    trim_heap()
