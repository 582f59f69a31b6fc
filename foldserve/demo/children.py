"""Starts programs that end when this process ends, even by SIGKILL, which runs no `finally`.

Run as a script, it asks the kernel to send SIGTERM when the parent dies, and then executes the program. It
is a script because code between fork and exec is unsafe beside threads. To the kernel, the parent is the
*thread* that started the child, so start children from a thread that outlives them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def ending_with_us(command: Sequence[object]) -> list[str]:
    """Return the command line that runs ``command`` until it ends or this process ends."""
    # The wrapper needs neither site-packages nor variables; without them it starts in 10 ms.
    return [sys.executable, "-IS", __file__, str(os.getpid()), *map(str, command)]


def environment_without_settings() -> dict[str, str]:
    """Return the environment without the variables that set flags of foldserve, for a server of our own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FOLDSERVE_")}


def _become(parent: int, command: list[str]) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the parent died before prctl took effect
        sys.exit(128 + signal.SIGTERM)
    os.execvp(command[0], command)  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
