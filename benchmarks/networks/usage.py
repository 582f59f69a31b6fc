"""Reads what a process has used: its peak of resident memory, which can be restarted, and processor time."""

from __future__ import annotations

import os
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


def cpu_seconds(process: int) -> float:
    """Return the seconds of the processor that a process has used; 0 if it is gone."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return 0.0
    fields = stat[stat.rindex(")") + 2 :].split()  # the name before it may hold anything
    user, system = int(fields[11]), int(fields[12])  # proc(5): utime, stime
    return (user + system) / os.sysconf("SC_CLK_TCK")
