"""Lets the C library keep the memory that a step frees for the next step.

By default glibc gives large blocks back to the system as soon as they are freed, and gets them again from it,
page by page, in the same step. On one thread of a busy CPU that took 5 % of the time of LeNet's steps, and a
quarter of those of a network with twice its maps. What a network computes does not depend on it.
"""

from __future__ import annotations

import ctypes

# M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of glibc's malloc.h (see `man mallopt`), in bytes. Blocks below the
# first come from the heap, whose free end stays up to the second.
_SETTINGS = {-3: 256 * 1024 * 1024, -1: 1024 * 1024 * 1024}


def keep_freed_memory() -> bool:
    """Keep up to 1 GiB of freed memory in this process from now on; return whether the C library can."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc
        return False
    answers = [mallopt(name, value) for name, value in _SETTINGS.items()]  # all of them
    return all(answer == 1 for answer in answers)
