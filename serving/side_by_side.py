"""Jobs side by side, of which a slow one holds up no other."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# A job that has run for so long is slow, and no longer counts among those that others wait for.
_SLOW_S = 5.0
# Most slow jobs at a time: each may hold a large model in memory, twice.
_MOST_SLOW = 8


class SideBySide:
    """Runs ``job_count`` jobs at a time, and others beside those of them that are slow."""

    def __init__(self, job_count: int, *, slow_s: float = _SLOW_S) -> None:
        self._job_count = job_count
        self._slow_s = slow_s

    def run(self, jobs: Iterable[tuple[str, Callable[[], None]]], *, leave_slow: bool = False) -> None:
        """Run ``jobs``, each with a name, in threads of their own; the first error of one is raised at once.

        With ``leave_slow`` return as soon as all have begun and those that have not ended are slow.
        """
        waiting = deque(jobs)
        began_s: dict[str, float] = {}
        ended: queue.SimpleQueue[tuple[str, Exception | None]] = queue.SimpleQueue()
        while waiting or began_s:
            now_s = time.monotonic()
            quick = [began for began in began_s.values() if now_s - began < self._slow_s]
            if waiting and len(quick) < self._job_count and len(began_s) < self._job_count + _MOST_SLOW:
                name, job = waiting.popleft()
                began_s[name] = now_s
                _begin(name, job, ended)
                continue
            if leave_slow and not waiting and not quick:
                return
            try:
                until_slow_s = min(quick) + self._slow_s - now_s if quick else None
                name, error = ended.get(timeout=until_slow_s)
            except queue.Empty:
                continue
            del began_s[name]
            if error is not None:
                raise error


def _begin(
    name: str, job: Callable[[], None], ended: queue.SimpleQueue[tuple[str, Exception | None]]
) -> None:
    def run() -> None:
        error: Exception | None = None
        try:
            job()
        except Exception as raised:  # handed over
            error = raised
        ended.put((name, error))

    threading.Thread(target=run, name=f"follow {name}", daemon=True).start()
