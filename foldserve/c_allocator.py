"""Sets how much freed memory the C library (glibc) keeps in this process for what it allocates next."""

from __future__ import annotations

import ctypes

# glibc's numbers (malloc.h; `man mallopt`) for the size from which blocks are mapped separately, and given
# back as soon as they are freed, and for the free memory at the end of a heap above which it is given back.
# glibc adapts both to the blocks it sees freed, unless one is set.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1


def keep_freed_memory(*, block_bytes: int, kept_bytes: int) -> bool:
    """Keep freed blocks below ``block_bytes``, up to ``kept_bytes`` at the end of a heap, from now on.

    Returns:
        Whether the C library can.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc
        return False
    answers = [mallopt(_M_MMAP_THRESHOLD, block_bytes), mallopt(_M_TRIM_THRESHOLD, kept_bytes)]  # both
    return all(answer == 1 for answer in answers)
