"""Runs loads with a time limit: stops those that take too long, and abandons those that cannot be stopped.

ONNX Runtime can be stopped between two operators, but not within one and not while it precomputes constants;
a file system may never answer. Such a thread cannot be ended from outside: it is left running at the lowest
priority, and the number of such threads is limited.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from foldserve.errors import LoadsHangError, LoadTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

# A step of a load that takes more than this share of the whole limit is assumed to hang; the longest step of
# a large network, 95 images of warm-up, takes a third of it. With a small limit, a step may take all of it.
_STEP_SHARE = 0.2
_MIN_STEP_S = 60.0
# Time to stop after being told to: one operator of a large network may take a second.
_STOP_S = 5.0
# Each may hold a model's memory, and use idle CPU time, for as long as the process lives.
_MAX_ABANDONED = 4
_MIN_PRIORITY = 19

_log = logging.getLogger(__name__)


def end_process(status: int) -> None:
    """Exit at once although threads are running: a normal exit would abort in those of ONNX Runtime."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class StopSignal:
    """Tells a running load to stop, from any thread, and lets the load report its progress.

    Attributes:
        stepped_s: when the load's last step ended, in monotonic seconds.
    """

    def __init__(self) -> None:
        self.stepped_s = time.monotonic()
        self._changing = threading.Lock()
        self._is_set = False
        self._stops: list[Callable[[], None]] = []

    def set(self) -> None:
        """Set the signal: call all functions registered with `on_set`."""
        with self._changing:
            self._is_set = True
            stops, self._stops = self._stops, []
        for stop in stops:
            stop()

    def note_step(self) -> None:
        """Record that a step of the load has ended."""
        self.stepped_s = time.monotonic()

    def on_set(self, stop: Callable[[], None]) -> None:
        """Call ``stop`` when the signal is set, or now if it is already set."""
        with self._changing:
            if not self._is_set:
                self._stops.append(stop)
                return
        stop()


class TimeLimit:
    """Runs functions for at most ``limit_s`` seconds each and ``step_s`` per step; usable from any thread.

    A function that has not stopped ``stop_s`` seconds after being told to is abandoned: its thread goes on,
    and its result is discarded.
    """

    def __init__(self, limit_s: float, *, step_s: float | None = None, stop_s: float = _STOP_S) -> None:
        self._limit_s = limit_s
        self._step_s = step_s or min(limit_s, max(_MIN_STEP_S, limit_s * _STEP_SHARE))
        self._stop_s = stop_s
        self._changing = threading.Lock()
        self._unfinished: set[_Work[Any]] = set()
        self._abandoned: set[_Work[Any]] = set()
        self._is_closed = False

    @property
    def unfinished_count(self) -> int:
        """Number of running threads, including abandoned ones."""
        return len(self._unfinished)

    def run(self, what: str, work: Callable[[StopSignal], _T]) -> _T:
        """Run ``work`` in a thread of its own; return its result or raise its exception.

        Raises:
            LoadTimeoutError: it did not end in time, or all loads are being stopped.
            LoadsHangError: too many abandoned loads are running; this one was not started.
        """
        running = _Work(what, work, self._forget)
        with self._changing:
            if len(self._abandoned) >= _MAX_ABANDONED:
                hanging = ", ".join(sorted(each.what for each in self._abandoned))
                raise LoadsHangError(
                    f"it waits until one of {len(self._abandoned)} loads that cannot be stopped ends "
                    f"({hanging}): remove those versions from the repository and restart the server"
                )
            if self._is_closed:
                raise LoadTimeoutError("the server is stopping")
            self._unfinished.add(running)
        running.start()
        overrun = self._watch(running)
        if overrun:
            running.stop.set()
            if not running.wait(self._stop_s):
                self._abandon(running)
        if self._is_closed:
            raise LoadTimeoutError("the server is stopping")
        if overrun:
            raise LoadTimeoutError(
                f"{overrun}: look for an endless loop or a huge constant in the model; if it is only slow, "
                "raise --load-timeout-s or lower --max-batch-size"
            )
        return running.outcome()

    def close(self) -> None:
        """Stop all running work, and start no more."""
        with self._changing:
            self._is_closed = True
            unfinished = list(self._unfinished)
        for running in unfinished:
            running.stop.set()

    def _watch(self, running: _Work[_T]) -> str:
        """Wait until ``running`` ends and return "", or until it is over a limit and return which."""
        ends_s = time.monotonic() + self._limit_s
        while True:
            left_s = min(ends_s, self._step_ends_s(running)) - time.monotonic()
            if running.wait(max(0.0, left_s)):
                return ""
            now_s = time.monotonic()
            if now_s >= ends_s:
                return f"loading took longer than the limit of {self._limit_s:g} s"
            if now_s >= self._step_ends_s(running):
                return f"a step of loading took longer than its limit of {self._step_s:g} s"

    def _step_ends_s(self, running: _Work[_T]) -> float:
        return running.stop.stepped_s + self._step_s if self._step_s < self._limit_s else math.inf

    def _abandon(self, running: _Work[_T]) -> None:
        with self._changing:
            if running not in self._unfinished:  # it has just ended
                return
            self._abandoned.add(running)
        running.lower_priority()
        _log.error(
            "%s cannot be stopped: its thread goes on at the lowest priority, perhaps for ever",
            running.what,
        )

    def _forget(self, running: _Work[Any]) -> None:
        with self._changing:
            self._unfinished.discard(running)
            self._abandoned.discard(running)


class _Work(Generic[_T]):
    """Runs one function in one thread, and keeps its result."""

    def __init__(
        self, what: str, work: Callable[[StopSignal], _T], on_end: Callable[[_Work[Any]], None]
    ) -> None:
        self.what = what
        self.stop = StopSignal()
        self._work: Callable[[StopSignal], _T] | None = work
        self._on_end = on_end
        self._ended = threading.Event()
        self._returned: list[_T] = []
        self._raised: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"load {what}", daemon=True)

    def start(self) -> None:
        """Start the thread; if that fails, end with the error."""
        try:
            self._thread.start()
        except RuntimeError as error:
            self._raised = error
            self._end()

    def wait(self, limit_s: float) -> bool:
        """Wait up to ``limit_s`` seconds; return whether it has ended."""
        return self._ended.wait(min(limit_s, threading.TIMEOUT_MAX))

    def outcome(self) -> _T:
        """Return the function's result, or raise its exception. May be called once."""
        error, self._raised = self._raised, None
        if error is not None:
            raise error
        return self._returned.pop()

    def lower_priority(self) -> None:
        """Lower the thread's priority to the minimum, if threads have priorities (Linux)."""
        if sys.platform == "linux" and self._thread.native_id is not None:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self._thread.native_id, _MIN_PRIORITY)

    def _run(self) -> None:
        work, self._work = self._work, None
        assert work is not None
        try:
            self._returned.append(work(self.stop))
        except Exception as error:  # raised by `outcome`
            self._raised = error
        finally:
            del work
            self._end()

    def _end(self) -> None:
        self._on_end(self)
        self._ended.set()
