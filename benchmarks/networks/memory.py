"""Reads and restarts the peak of this process's resident memory."""

from __future__ import annotations

import re
from pathlib import Path

_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")
_RESTART_PEAK = "5"  # proc(5), clear_refs


def restart_peak() -> None:
    """Let the peak begin at the memory that is resident now."""
    Path("/proc/self/clear_refs").write_text(_RESTART_PEAK)


def peak_mib(process: int | str = "self") -> int:
    """Return the peak of a process since its start or the last restart, in MiB; 0 if it is gone."""
    try:
        found = _PEAK.search(Path(f"/proc/{process}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) // 1024 if found else 0
