"""Starts threads when there is work for them, and ends those that have had none for a while."""

from __future__ import annotations

import itertools
import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)


class WorkerPool:
    """At most ``max_threads`` threads that run the same function. Every method is called with ``lock`` held.

    Holds no reference to its owner, so that a closed batcher is freed without the garbage collector.

    Attributes:
        max_threads: 0 until threads are allowed.
        name: start of the threads' names; a number follows.
        threads: the threads that run or wait.
    """

    def __init__(self, lock: threading.Lock, idle_s: float) -> None:
        self.max_threads = 0
        self.name = ""
        self.threads: set[threading.Thread] = set()
        self._woken = threading.Condition(lock)
        self._idle_s = idle_s
        self._waiting_count = 0
        self._numbers = itertools.count()

    def wake(self, work: Callable[[WorkerPool], None]) -> bool:
        """Wake or start one thread; return False if all are busy and no other can be started.

        ``work`` is the function that a new thread runs.
        """
        if self._waiting_count:
            self._woken.notify()
            return True
        return len(self.threads) < self.max_threads and self._start(work)

    def wake_all(self) -> None:
        """Wake all threads that wait."""
        self._woken.notify_all()

    def wait(self, due_in_s: float | None) -> bool:
        """Sleep until woken or until work is due; return False if neither happened for ``idle_s`` seconds."""
        self._waiting_count += 1
        try:
            return self._woken.wait(self._idle_s if due_in_s is None else due_in_s) or due_in_s is not None
        finally:
            self._waiting_count -= 1

    def leave(self) -> None:
        """Remove the calling thread, which is about to end."""
        self.threads.discard(threading.current_thread())

    def _start(self, work: Callable[[WorkerPool], None]) -> bool:
        thread = threading.Thread(
            target=work, args=(self,), name=f"{self.name}#{next(self._numbers)}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # a limit on threads: those that exist go on, or the caller runs its request
            _log.exception("cannot start a thread for %s", self.name)
            return False
        self.threads.add(thread)
        return True
