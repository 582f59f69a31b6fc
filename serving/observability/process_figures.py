"""Reads figures of this process from /proc; they are None on systems without it."""

from __future__ import annotations

from pathlib import Path

_PROC = Path("/proc")
_ESTABLISHED = "01"  # include/net/tcp_states.h


def thread_count(proc: Path = _PROC) -> int | None:
    """Return the number of threads of this process, including those of libraries."""
    try:
        lines = (proc / "self" / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("Threads:")), None)


def connection_count(port: int, proc: Path = _PROC) -> int | None:
    """Return the number of established TCP connections to ``port`` of this machine."""
    count, found = 0, False
    local = f":{port:04X}"
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / "self" / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        found = True
        # Fields: number, local address, remote address, state, ...; addresses are HEX:PORT.
        for line in lines:
            fields = line.split(maxsplit=4)
            count += fields[3] == _ESTABLISHED and fields[1].endswith(local)
    return count if found else None
