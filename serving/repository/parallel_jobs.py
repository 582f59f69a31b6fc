"""Runs named jobs in parallel: one per name at a time, and none waits for a slow one."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict, deque
from typing import TYPE_CHECKING

from foldserve.text import quote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# A job that has run for longer is slow: it no longer takes one of the places that others wait for.
_SLOW_S = 5.0
# Most slow jobs at a time: each may hold two copies of a large model in memory.
_MAX_SLOW = 8

_log = logging.getLogger(__name__)


class ParallelJobs:
    """Runs up to ``job_count`` jobs at a time, not counting the slow ones.

    An error in a job is logged and affects no other job, unless it is of the ``fatal`` types.
    """

    def __init__(
        self, job_count: int, fatal: tuple[type[Exception], ...] = (), *, slow_s: float | None = None
    ) -> None:
        self._job_count = job_count
        self._fatal = fatal
        self._slow_s = _SLOW_S if slow_s is None else slow_s
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._changed = threading.Condition()
        self._began_s: dict[str, float] = {}  # of all running jobs, those left behind included

    def alone(self, name: str) -> threading.Lock:
        """Return the lock that a job of this name holds while it runs."""
        return self._locks[name]

    def is_busy(self, name: str) -> bool:
        """Tell whether a job of this name is running."""
        return name in self._locks and self._locks[name].locked()

    def run(self, jobs: Mapping[str, Callable[[], object]], *, leave_slow: bool = False) -> None:
        """Run ``jobs`` by name, each in a thread of its own, and wait until all have ended.

        With ``leave_slow``, slow jobs are left running in the background. A fatal error is raised at once.
        """
        waiting = deque(jobs.items())
        own: set[str] = set()
        fatal: list[Exception] = []
        with self._changed:
            while not fatal:
                now_s = time.monotonic()
                quick = {name: began for name, began in self._began_s.items() if now_s - began < self._slow_s}
                most = self._job_count + _MAX_SLOW
                if waiting and len(quick) < self._job_count and len(self._began_s) < most:
                    name, job = waiting.popleft()
                    own.add(name)
                    self._begin(name, job, fatal)
                    continue
                own &= self._began_s.keys()
                if not waiting and not (own & quick.keys() if leave_slow else own):
                    return
                self._changed.wait(min(quick.values()) + self._slow_s - now_s if quick else None)
        raise fatal[0]

    def _begin(self, name: str, job: Callable[[], object], fatal: list[Exception]) -> None:
        def run() -> None:
            try:
                with self.alone(name):
                    job()
            except self._fatal as error:
                fatal.append(error)
            except Exception:
                _log.exception("%s: failed", quote(name))
            finally:
                with self._changed:
                    del self._began_s[name]
                    self._changed.notify_all()

        self._began_s[name] = time.monotonic()
        try:
            threading.Thread(target=run, name=f"follow {name}", daemon=True).start()
        except RuntimeError:  # no thread can be started: run the job here
            run()
