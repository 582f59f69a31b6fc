"""File descriptors: every connection takes one, and a process that has none left is deaf to everybody.

What is free at the start is shared out: most of it is for callers, the rest a reserve for all else (loading
models, probes, the sockets between the transports). Where callers come near it, those that have asked nothing
are closed, then those that have been silent longest: their clients connect anew when they need to.
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
# What the server opens for itself once they are shared out: listeners, pollers, sockets between transports.
_NEEDED_LATER = 12
# No part of the server opens more than a few files at a time; CUDA's libraries open some dozens.
_MOST_RESERVED = 256
# More than any set of probes and scrapers has open at once.
_MOST_PROBES = 64
# Between two looks pass at least and at most so many seconds, and as many as callers need to take all that is
# free: one who comes while nothing is free is turned away or waits. A look takes that share of the time at
# most; before Linux 6.2 it goes through all descriptors.
_LEAST_PAUSE_S, _MOST_PAUSE_S = 0.01, 0.25
_MOST_TAKEN_PER_S = 40_000
_LOOK_SHARE = 0.02
# The kernel's own most where the limit is said to be infinite (fs.nr_open).
_MOST_DESCRIPTORS = 2**20
# A client that has only said hello has sent its preface, settings and window, some 82 bytes; even a
# short call comes to more.
_HELLO_BYTES = 128
# struct tcp_info (linux/tcp.h): milliseconds since data was last sent and received, bytes received.
_TCP_INFO = struct.Struct("=44x I 4x I 72x Q")
_LOG_AGAIN_S = 3600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DescriptorShares:
    """How many descriptors the process may have, and what they are for.

    Attributes:
        limit: all there may be.
        reserve: so many are kept free by closing connections that are idle.
        max_connections: most connections to the gRPC port, closed at once beyond it where the transport can.
        max_probes: most connections to the port of metrics and probes.
    """

    limit: int
    reserve: int
    max_connections: int
    max_probes: int


def share_descriptors() -> DescriptorShares:
    """Raise the soft limit on descriptors to the hard one, and share out what is free of it."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # more than the system allows by now
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
    )


class _Connection(NamedTuple):
    """A connection of a caller, in the order in which they are closed."""

    has_asked: bool
    active_ms: int  # since it last sent or took anything, negative: the longest idle comes first
    descriptor: int
    inode: int  # whether the descriptor is still the same connection


class ConnectionGuard:
    """Keeps descriptors free, while it is entered as a context manager, by closing connections to ``port``.

    It needs nothing of the transport: a connection that is shut down here looks to it as if its client had
    closed it.
    """

    def __init__(self, port: int, shares: DescriptorShares) -> None:
        self._port = port
        self._shares = shares
        self._logged_s = -_LOG_AGAIN_S
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="descriptors", daemon=True)

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._null = os.open(os.devnull, os.O_RDONLY)
        # A copy of the descriptor that is looked at: to replace it needs no free one, and what it stands for
        # cannot become something else in the meantime.
        self._pinned = os.dup(self._null)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Look no more."""
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
                "fewer than %d of %d file descriptors are free: closed %d idle connections, and will go on "
                "so without a word; raise the limit (ulimit -n, LimitNOFILE), or give --max-connections or "
                "--max-connection-idle-s",
                *(self._shares.reserve, self._shares.limit, closed_count),
            )

    def _connections(self) -> Iterator[_Connection]:
        # Where descriptors are short nearly all numbers are taken: a list of them would need one more.
        for descriptor in range(self._shares.limit):
            with contextlib.suppress(OSError):  # closed, no socket, or one that listens
                connection = self._look_at(descriptor)
                if connection is not None:
                    yield connection

    def _look_at(self, descriptor: int) -> _Connection | None:
        """Return the caller's connection that ``descriptor`` is; None or OSError if it is something else."""
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
        except OSError:  # it has ended by itself
            return False
        return True

    @contextlib.contextmanager
    def _pin(self, descriptor: int) -> Iterator[socket.socket]:
        """Give the socket that ``descriptor`` is, while it is entered; raises OSError if it is none."""
        if descriptor not in (self._pinned, self._null):
            os.dup2(descriptor, self._pinned, inheritable=False)
        pinned = socket.socket(fileno=self._pinned)
        try:
            yield pinned
        finally:
            pinned.detach()


def _open_count(limit: int) -> int:
    """Return how many descriptors this process has open."""
    try:
        # The size of the folder says it since Linux 6.2; before, it is 0.
        return _OWN.stat().st_size or len(os.listdir(_OWN))  # noqa: PTH208  # names alone, and fast
    except OSError:  # there is none left to look with
        return limit
