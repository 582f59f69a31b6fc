"""Jobs by name side by side: one of a name at a time, and a slow one holds up no other."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import defaultdict, deque
from typing import TYPE_CHECKING

from serving.shown import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# A job that has run for so long is slow, and no longer counts among those that others wait for.
_SLOW_S = 5.0
# Most slow jobs at a time: each may hold a large model in memory, twice.
_MOST_SLOW = 8

_log = logging.getLogger(__name__)


class SideBySide:
    """Runs ``job_count`` jobs at a time, and others beside those of them that are slow.

    What a job raises is logged and stays with it, but for errors of the ``fatal`` types.
    """

    def __init__(
        self, job_count: int, fatal: tuple[type[Exception], ...] = (), *, slow_s: float = _SLOW_S
    ) -> None:
        self._job_count = job_count
        self._fatal = fatal
        self._slow_s = slow_s
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def alone(self, name: str) -> threading.Lock:
        """Return the lock that a job of that name holds while it runs."""
        return self._locks[name]

    def is_busy(self, name: str) -> bool:
        """Tell whether something of that name is under way."""
        return name in self._locks and self._locks[name].locked()

    def run(self, jobs: Mapping[str, Callable[[], object]], *, leave_slow: bool = False) -> None:
        """Run ``jobs`` by name, each in a thread of its own, until all have ended.

        With ``leave_slow`` only until those that have not ended are slow. A fatal error is raised at once.
        """
        waiting = deque(jobs.items())
        began_s: dict[str, float] = {}
        ended: queue.SimpleQueue[tuple[str, Exception | None]] = queue.SimpleQueue()
        while waiting or began_s:
            now_s = time.monotonic()
            quick = [began for began in began_s.values() if now_s - began < self._slow_s]
            if waiting and len(quick) < self._job_count and len(began_s) < self._job_count + _MOST_SLOW:
                name, job = waiting.popleft()
                began_s[name] = now_s
                self._begin(name, job, ended)
                continue
            if leave_slow and not waiting and not quick:
                return
            try:
                name, error = ended.get(timeout=min(quick) + self._slow_s - now_s if quick else None)
            except queue.Empty:
                continue
            del began_s[name]
            if error is not None:
                raise error

    def _begin(
        self, name: str, job: Callable[[], object], ended: queue.SimpleQueue[tuple[str, Exception | None]]
    ) -> None:
        def run() -> None:
            fatal: Exception | None = None
            try:
                with self.alone(name):
                    job()
            except self._fatal as error:
                fatal = error
            except Exception:
                _log.exception("%s: failed", shown(name))
            ended.put((name, fatal))

        try:
            threading.Thread(target=run, name=f"follow {name}", daemon=True).start()
        except RuntimeError:  # no thread is to be had: one after the other, then
            run()
