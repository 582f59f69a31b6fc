"""Keeps file descriptors free: each connection needs one, and a process without any can accept no call.

The descriptors that are free at the start are divided: most are for callers, the rest is a reserve for
everything else (loading models, probes, the sockets between the transports). When callers use up the others,
connections that sent no request are closed first, then those idle longest; their clients reconnect when they
need to.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

_OWN = Path("/proc/self/fd")
# Descriptors that the server opens for itself afterwards: listeners, pollers, sockets between transports.
_NEEDED_LATER = 12
# Enough: no part of the server opens more than a few files at a time, and CUDA's libraries some dozens.
_MOST_RESERVED = 256
# More than any set of probes and scrapers keeps open at the same time.
_MOST_PROBES = 64
# Clients over HTTP/1.1 have a connection for each call that is under way.
_MOST_HTTP = 1024
# Bounds in seconds of the pause between two checks. Within them it is the time in which callers could use up
# all free descriptors, since a caller who finds none is rejected or waits. Checks take at most this share of
# the time; before Linux 6.2 each one lists all descriptors.
_LEAST_PAUSE_S, _MOST_PAUSE_S = 0.01, 0.25
_MOST_TAKEN_PER_S = 40_000
_LOOK_SHARE = 0.02
# The kernel's own maximum (fs.nr_open), used if the limit is infinite.
_MOST_DESCRIPTORS = 2**20
# A client that has only connected has sent its preface, settings and window, some 82 bytes; even a short call
# sends more.
_HELLO_BYTES = 128
# struct tcp_info (linux/tcp.h): milliseconds since data was last sent and received, bytes received.
_TCP_INFO = struct.Struct("=44x I 4x I 72x Q")
_LOG_AGAIN_S = 3600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DescriptorShares:
    """How many descriptors the process may have, and how they are divided.

    Attributes:
        limit: most descriptors of the process.
        reserve: how many are kept free by closing idle connections.
        max_connections: most connections to the gRPC port; if the transport can, it closes further ones.
        max_probes: most connections to the port of metrics and probes.
        max_http: most connections to the port of the REST API, if there is one.
    """

    limit: int
    reserve: int
    max_connections: int
    max_probes: int
    max_http: int


def share_descriptors() -> DescriptorShares:
    """Raise the soft limit on descriptors to the hard one, and divide the free ones."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # the system has lowered what it allows
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        limit = _MOST_DESCRIPTORS
    free_count = max(limit - _open_count(limit) - _NEEDED_LATER, 2)
    reserve = min(free_count // 2, _MOST_RESERVED)
    return DescriptorShares(
        limit=limit,
        reserve=reserve,
        max_connections=free_count - reserve // 2,
        max_probes=max(1, min(free_count // 8, _MOST_PROBES)),
        max_http=max(1, min(free_count // 4, _MOST_HTTP)),
    )


class _Connection(NamedTuple):
    """A caller's connection; sorts in the order in which connections are closed."""

    has_asked: bool
    active_ms: int  # time since its last traffic, negated: the longest idle sorts first
    descriptor: int
    inode: int  # to recognise a descriptor that was reused since


class ConnectionGuard:
    """Keeps descriptors free by closing idle connections to ``port``; a context manager.

    It does not depend on the transport, which sees a connection shut down here as closed by its client.
    """

    def __init__(self, port: int, shares: DescriptorShares) -> None:
        self._port = port
        self._shares = shares
        self._logged_s = -_LOG_AGAIN_S
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="descriptors", daemon=True)

    def __enter__(self) -> Self:
        """Start watching."""
        self._null = os.open(os.devnull, os.O_RDONLY)
        # Receives a copy of each descriptor that is examined: replacing it needs no free descriptor, and the
        # copy refers to the same connection even if the original is closed and reused meanwhile.
        self._pinned = os.dup(self._null)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._stopping.set()
        self._thread.join()
        os.close(self._pinned)
        os.close(self._null)

    def _watch(self) -> None:
        pause_s = _LEAST_PAUSE_S
        while not self._stopping.wait(pause_s):
            started_s = time.monotonic()
            free_count = self._shares.limit - _open_count(self._shares.limit)
            looked_s = time.monotonic() - started_s
            pause_s = min(max(free_count / _MOST_TAKEN_PER_S, _LEAST_PAUSE_S), _MOST_PAUSE_S)
            pause_s = max(pause_s, looked_s / _LOOK_SHARE)
            if free_count < self._shares.reserve:
                try:
                    self._close_idle(self._shares.reserve - free_count + self._shares.reserve // 4)
                except Exception:
                    _log.exception("closing idle connections failed")

    def _close_idle(self, count: int) -> None:
        try:
            closed_count = sum(self._close(connection) for connection in sorted(self._connections())[:count])
        finally:
            os.dup2(self._null, self._pinned, inheritable=False)
        now_s = time.monotonic()
        if now_s - self._logged_s >= _LOG_AGAIN_S:
            self._logged_s = now_s
            _log.warning(
                "fewer than %d of %d file descriptors are free: closed %d idle connections (logged once per "
                "hour); raise the limit (ulimit -n, LimitNOFILE), or set --max-connections or "
                "--max-connection-idle-s",
                *(self._shares.reserve, self._shares.limit, closed_count),
            )

    def _connections(self) -> Iterator[_Connection]:
        # All numbers are tried: nearly all are in use, and listing them would need another descriptor.
        for descriptor in range(self._shares.limit):
            with contextlib.suppress(OSError):  # closed, not a socket, or a listening one
                connection = self._look_at(descriptor)
                if connection is not None:
                    yield connection

    def _look_at(self, descriptor: int) -> _Connection | None:
        """Return the caller's connection behind ``descriptor``; None, or OSError, if it is something else."""
        with self._pin(descriptor) as pinned:
            if pinned.family not in (socket.AF_INET, socket.AF_INET6):
                return None
            if pinned.getsockname()[1] != self._port:
                return None
            pinned.getpeername()
            content = pinned.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            sent_ms, received_ms, received_bytes = _TCP_INFO.unpack(content.ljust(_TCP_INFO.size, b"\0"))
            inode = os.fstat(self._pinned).st_ino
            return _Connection(received_bytes > _HELLO_BYTES, -min(sent_ms, received_ms), descriptor, inode)

    def _close(self, connection: _Connection) -> bool:
        try:
            with self._pin(connection.descriptor) as pinned:
                if os.fstat(self._pinned).st_ino != connection.inode:
                    return False
                pinned.shutdown(socket.SHUT_RDWR)
        except OSError:  # it was closed meanwhile
            return False
        return True

    @contextlib.contextmanager
    def _pin(self, descriptor: int) -> Iterator[socket.socket]:
        """Yield a socket on a copy of ``descriptor``; raises OSError if that is not a socket."""
        if descriptor not in (self._pinned, self._null):
            os.dup2(descriptor, self._pinned, inheritable=False)
        pinned = socket.socket(fileno=self._pinned)
        try:
            yield pinned
        finally:
            pinned.detach()


def _open_count(limit: int) -> int:
    """Return how many descriptors this process has open, ``limit`` if that cannot be told."""
    try:
        # Since Linux 6.2 the folder's size is the number of descriptors; before, it is 0.
        return _OWN.stat().st_size or len(os.listdir(_OWN))  # noqa: PTH208  # needs names only, and must be fast
    except OSError:  # no descriptor is left to list them with
        return limit
