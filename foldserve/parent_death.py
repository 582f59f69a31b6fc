"""Ends a process with the one that started it, even by SIGKILL, which runs no `finally`."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with(parent_id: int) -> None:
    """Have the kernel end this process (SIGKILL) when ``parent_id``, which started it, ends; on Linux only.

    To the kernel, the parent is the *thread* that started this process.

    Raises:
        ProcessLookupError: the parent has ended already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_id:
        raise ProcessLookupError(f"process {parent_id}, which started this one, has ended")
