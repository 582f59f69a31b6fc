"""Starts programs that end when this process does, however it ends: also by SIGKILL, which runs no `finally`.

Run as a script, it asks the kernel for SIGTERM on its parent's death and becomes the program. A wrapper, as
code between fork and exec is unsafe beside threads. The kernel's parent is the *thread* that started the
child: start children from one that stays.
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
    """Return the command line that runs ``command`` until it ends, or this process does."""
    # Neither site-packages nor variables matter to the wrapper: without them it starts in 10 ms.
    return [sys.executable, "-IS", __file__, str(os.getpid()), *map(str, command)]


def environment_without_settings() -> dict[str, str]:
    """Return this process's variables but those that set flags of foldserve, for a server of our own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FOLDSERVE_")}


def _become(parent: int, command: list[str]) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # which ended before it was asked for
        sys.exit(128 + signal.SIGTERM)
    os.execvp(command[0], command)  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
