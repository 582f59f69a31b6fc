"""Loads that must end: run beside their caller, told to stop when their time is over, else left behind.

ONNX Runtime ends a run between two operators once it is told to, but not within one, and computes constants
as it opens a file without asking; a file system may answer never. Such a thread cannot be ended from outside:
it is left to itself, at the least priority, and there may be only so many of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from serving.errors import LoadsHangError, LoadTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

# What was told to stop has this long: one operator of a large network may take a second.
_STOP_S = 5.0
# Each may keep a model's memory and what nobody else wants of a processor for as long as the process lives.
_MOST_ABANDONED = 4
_LEAST_PRIORITY = 19

_log = logging.getLogger(__name__)


def end_process(status: int) -> None:
    """End the process beneath threads that go on: in an ordinary end ONNX Runtime's would abort it."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class StopSignal:
    """Word to a load under way, from any thread, that it is to end."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._is_set = False
        self._stops: list[Callable[[], None]] = []

    def set(self) -> None:
        """Call all that was handed to `on_set`."""
        with self._changing:
            self._is_set = True
            stops, self._stops = self._stops, []
        for stop in stops:
            stop()

    def on_set(self, stop: Callable[[], None]) -> None:
        """Have ``stop`` called when the signal is set, at once where it is already."""
        with self._changing:
            if not self._is_set:
                self._stops.append(stop)
                return
        stop()


class TimeLimit:
    """Runs work for at most ``limit_s`` seconds each; may be used from any thread.

    What was told to stop and has not within ``stop_s`` seconds is abandoned: its thread goes on, and what it
    comes to is thrown away.
    """

    def __init__(self, limit_s: float, *, stop_s: float = _STOP_S) -> None:
        self._limit_s = limit_s
        self._stop_s = stop_s
        self._changing = threading.Lock()
        self._unfinished: set[_Work[Any]] = set()
        self._abandoned: set[_Work[Any]] = set()
        self._is_closed = False

    @property
    def unfinished_count(self) -> int:
        """How many threads are at work, abandoned ones included."""
        return len(self._unfinished)

    def run(self, what: str, work: Callable[[StopSignal], _T]) -> _T:
        """Run ``work`` in a thread of its own and return what it does, or raise it.

        Raises:
            LoadTimeoutError: it did not end in time, or all loads are being stopped.
            LoadsHangError: so many abandoned ones go on that nothing was begun.
        """
        running = _Work(what, work, self._forget)
        with self._changing:
            if len(self._abandoned) >= _MOST_ABANDONED:
                hanging = ", ".join(sorted(each.what for each in self._abandoned))
                raise LoadsHangError(
                    f"it waits for one of {len(self._abandoned)} loads to end that could not be stopped "
                    f"({hanging}): take those versions out of the repository and restart the server"
                )
            if self._is_closed:
                raise LoadTimeoutError("the server is stopping")
            self._unfinished.add(running)
        running.start()
        ended = running.wait(self._limit_s)
        if not ended:
            running.stop.set()
            if not running.wait(self._stop_s):
                self._abandon(running)
        if self._is_closed:
            raise LoadTimeoutError("the server is stopping")
        if not ended:
            raise LoadTimeoutError(
                f"loading took longer than the {self._limit_s:g} s that it may take: look for a loop without "
                "end or far too large a constant in the model; if it is only slow, raise --load-timeout-s"
            )
        return running.outcome()

    def close(self) -> None:
        """Stop what is under way, and begin nothing more."""
        with self._changing:
            self._is_closed = True
            unfinished = list(self._unfinished)
        for running in unfinished:
            running.stop.set()

    def _abandon(self, running: _Work[_T]) -> None:
        with self._changing:
            if running not in self._unfinished:  # it has just ended
                return
            self._abandoned.add(running)
        running.step_back()
        _log.error(
            "%s cannot be stopped: its thread is left behind, at the least priority, and may go on for ever",
            running.what,
        )

    def _forget(self, running: _Work[Any]) -> None:
        with self._changing:
            self._unfinished.discard(running)
            self._abandoned.discard(running)


class _Work(Generic[_T]):
    """One function in one thread, and what it came to."""

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
        """Begin; where no thread can be had, end at once with that error."""
        try:
            self._thread.start()
        except RuntimeError as error:
            self._raised = error
            self._end()

    def wait(self, limit_s: float) -> bool:
        """Wait up to so many seconds, and tell whether it has ended."""
        return self._ended.wait(min(limit_s, threading.TIMEOUT_MAX))

    def outcome(self) -> _T:
        """Return or raise what the function did, once."""
        error, self._raised = self._raised, None
        if error is not None:
            raise error
        return self._returned.pop()

    def step_back(self) -> None:
        """Take the least priority, where threads have one each (Linux)."""
        if sys.platform == "linux" and self._thread.native_id is not None:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self._thread.native_id, _LEAST_PRIORITY)

    def _run(self) -> None:
        work, self._work = self._work, None
        assert work is not None
        try:
            self._returned.append(work(self.stop))
        except Exception as error:  # handed over
            self._raised = error
        finally:
            del work
            self._end()

    def _end(self) -> None:
        self._on_end(self)
        self._ended.set()
