"""Threads that wait for the same kind of work: begun when it comes, ended when it has not for a while."""

from __future__ import annotations

import itertools
import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)


class WorkerPool:
    """At most ``max_threads`` threads that do the same; all of it is used with ``lock`` held.

    It does not know whose threads they are: those are then freed without the garbage collector.

    Attributes:
        max_threads: 0 until there may be threads.
        name: of the threads, with a number behind it.
        threads: those there are.
    """

    def __init__(self, lock: threading.Lock, idle_s: float) -> None:
        self.max_threads = 0
        self.name = ""
        self.threads: set[threading.Thread] = set()
        self._woken = threading.Condition(lock)
        self._idle_s = idle_s
        self._asleep_count = 0
        self._numbers = itertools.count()

    def wake(self, work: Callable[[WorkerPool], None]) -> bool:
        """Have one more thread look for work; return False where all are at it, or none can be had.

        ``work`` is what a thread runs that has to be begun.
        """
        if self._asleep_count:
            self._woken.notify()
            return True
        return len(self.threads) < self.max_threads and self._begin(work)

    def wake_all(self) -> None:
        """Have all threads look."""
        self._woken.notify_all()

    def wait(self, due_in_s: float | None) -> bool:
        """Sleep until woken, or work is due; return False where neither came for a while."""
        self._asleep_count += 1
        try:
            return self._woken.wait(self._idle_s if due_in_s is None else due_in_s) or due_in_s is not None
        finally:
            self._asleep_count -= 1

    def leave(self) -> None:
        """Note that the calling thread ends."""
        self.threads.discard(threading.current_thread())

    def _begin(self, work: Callable[[WorkerPool], None]) -> bool:
        thread = threading.Thread(
            target=work, args=(self,), name=f"{self.name}#{next(self._numbers)}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # a limit on threads; those that there are go on, or the caller's is lent
            _log.exception("no thread can be had for %s", self.name)
            return False
        self.threads.add(thread)
        return True
