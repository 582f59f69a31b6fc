"""Which processes run, and whose children they are, read from /proc."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def children_of(number: int) -> list[int]:
    """Return the processes that ``number`` has started and that it, or the kernel, has not forgotten."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # ended meanwhile
            if entry.name.isdigit() and _fields_of(int(entry.name))[1] == str(number):
                found.append(int(entry.name))
    return found


def runs(number: int) -> bool:
    """Return whether there is such a process, and it has not ended."""
    try:
        return _fields_of(number)[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait at most a minute."""
    give_up_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.01)


def _fields_of(number: int) -> list[str]:
    """Return the fields of /proc/NUMBER/stat from the state on: state, parent, ... (man 5 proc)."""
    return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
