"""Reads figures of this process from /proc; they are None on systems without it."""

from __future__ import annotations

import contextlib
from pathlib import Path

_PROC = Path("/proc")
_SOCKET = "socket:["  # and the inode, and "]"
_ESTABLISHED = "01"  # include/net/tcp_states.h


def thread_count(proc: Path = _PROC) -> int | None:
    """Return the number of threads of this process, including those of libraries."""
    try:
        lines = (proc / "self" / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("Threads:")), None)


def connection_count(port: int, proc: Path = _PROC) -> int | None:
    """Return how many TCP connections to ``port`` this process has.

    Other processes may share the port, and what they have taken in is not counted.
    """
    count, found = 0, False
    local = f":{port:04X}"
    try:
        own = _own_sockets(proc)
    except OSError:  # no such folder, or no descriptor left to look with
        return None
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / "self" / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        found = True
        # Fields: number, local address, remote address, state, five more, inode, ...; addresses are HEX:PORT.
        for line in lines:
            fields = line.split(maxsplit=10)
            is_ours = fields[3] == _ESTABLISHED and fields[1].endswith(local)
            count += is_ours and fields[9] in own
    return count if found else None


def _own_sockets(proc: Path) -> set[str]:
    """Return the inodes of the sockets that this process has open."""
    targets = []
    for descriptor in (proc / "self" / "fd").iterdir():
        with contextlib.suppress(OSError):  # closed since it was listed
            targets.append(str(descriptor.readlink()))
    return {target[len(_SOCKET) : -1] for target in targets if target.startswith(_SOCKET)}
