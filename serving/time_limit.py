"""Loads that must end: run beside their caller, told to stop when their time is over, else left behind.

ONNX Runtime ends a run between two operators once it is told to, but not within one, and computes constants
as it opens a file without asking; a file system may answer never. Such a thread cannot be ended from outside:
it is left to itself, at the least priority, and there may be only so many of them.
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

from serving.errors import LoadsHangError, LoadTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

# A step of a load that takes more than this share of the whole is taken for one without end; the longest of a
# large network's, 95 images of warm-up, is a third. Where little is allowed, a step may take all of it.
_STEP_SHARE = 0.2
_LEAST_STEP_S = 60.0
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
    """Word to a load under way, from any thread, that it is to end; and from it, that it gets on.

    Attributes:
        stepped_s: when its last step ended, in monotonic seconds.
    """

    def __init__(self) -> None:
        self.stepped_s = time.monotonic()
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

    def note_step(self) -> None:
        """Note that a step of the load has ended."""
        self.stepped_s = time.monotonic()

    def on_set(self, stop: Callable[[], None]) -> None:
        """Have ``stop`` called when the signal is set, at once where it is already."""
        with self._changing:
            if not self._is_set:
                self._stops.append(stop)
                return
        stop()


class TimeLimit:
    """Runs work for at most ``limit_s`` seconds each, and a share of it a step; may be used from any thread.

    What was told to stop and has not within ``stop_s`` seconds is abandoned: its thread goes on, and what it
    comes to is thrown away.
    """

    def __init__(self, limit_s: float, *, step_s: float | None = None, stop_s: float = _STOP_S) -> None:
        self._limit_s = limit_s
        self._step_s = step_s or min(limit_s, max(_LEAST_STEP_S, limit_s * _STEP_SHARE))
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
        overrun = self._watch(running)
        if overrun:
            running.stop.set()
            if not running.wait(self._stop_s):
                self._abandon(running)
        if self._is_closed:
            raise LoadTimeoutError("the server is stopping")
        if overrun:
            raise LoadTimeoutError(
                f"{overrun}: look for a loop without end or far too large a constant in the model; if it is "
                "only slow, raise --load-timeout-s or lower --max-batch-size"
            )
        return running.outcome()

    def close(self) -> None:
        """Stop what is under way, and begin nothing more."""
        with self._changing:
            self._is_closed = True
            unfinished = list(self._unfinished)
        for running in unfinished:
            running.stop.set()

    def _watch(self, running: _Work[_T]) -> str:
        """Wait until ``running`` ends, and return ""; or until it has overrun its time, and return how."""
        ends_s = time.monotonic() + self._limit_s
        while True:
            left_s = min(ends_s, self._step_ends_s(running)) - time.monotonic()
            if running.wait(max(0.0, left_s)):
                return ""
            now_s = time.monotonic()
            if now_s >= ends_s:
                return f"loading took longer than the {self._limit_s:g} s that it may take"
            if now_s >= self._step_ends_s(running):
                return f"loading took longer than the {self._step_s:g} s that a step of it may take"

    def _step_ends_s(self, running: _Work[_T]) -> float:
        return running.stop.stepped_s + self._step_s if self._step_s < self._limit_s else math.inf

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
