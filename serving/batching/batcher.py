"""Dynamic batching: many callers' rows in, one execution, each caller's own rows out.

A free instance takes whatever waits, up to ``max_batch_size`` rows: a lone caller pays nothing, and under
load batches grow by themselves while the instances are busy. Overflow instances take full batches only: they
use idle CPUs when batches cannot grow any further, and never split small ones. With a ``max_queue_delay_s`` a
request waits that long for a fuller batch, but only if something else is in flight already. With a
``gather_share``, what waits when an execution ends is not run at once: the callers that were just answered
often ask again, and two groups of callers would take turns with half a batch each. Knows neither gRPC nor
ONNX Runtime, only arrays whose first dimension counts rows, and a function that runs them.

These hold for every schedule of arrivals, cancellations and failures:
- each request submitted gets exactly one outcome, made of its own rows in its own order;
- no execution sees more than ``max_batch_size`` rows: a larger request is cut, and its slices are rejoined;
- cancelled and expired requests are dropped while a batch is formed and never reach the model;
- a failing batch is run again request by request, so that only the guilty ones fail;
- the queue is bounded in rows and bytes, and a full one refuses at once.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Any, Generic

import numpy as np

from foldserve.serving.batching.queue import RequestQueue
from foldserve.serving.batching.request import (
    Arrays,
    Execution,
    OnDone,
    Outcome,
    R,
    RequestSlice,
    concatenate_slices,
    record_outcome,
)
from foldserve.serving.batching.worker_pool import WorkerPool
from foldserve.serving.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

# A thread ends after so long without work; the next request starts another one, which takes 0.1 ms.
_IDLE_S = 10.0

_log = logging.getLogger(__name__)


class DynamicBatcher(Generic[R]):
    """Queues requests and runs them in batches, one per instance at the same time.

    Args:
        execute: runs [n, ...] and returns arrays of n rows each; called from one thread per instance.
        max_batch_size: most rows in one execution.
        max_queue_rows: most rows that may wait. An empty queue accepts a request of any size.
        max_queue_bytes: most bytes of rows that may wait, with the same exception.
        max_queue_delay_s: longest time a request waits for a fuller batch, if something else is in flight.
        gather_share: longest time that requests wait after an execution for its callers to ask again, as a
            share of the time that it took.
        on_execution: called after each execution that succeeded, from the thread that ran it.
        clock: monotonic seconds.
        idle_s: how long a thread without work stays.
    """

    def __init__(
        self,
        execute: Callable[[NDArray[Any]], Sequence[NDArray[Any]]],
        *,
        max_batch_size: int,
        max_queue_rows: int,
        max_queue_bytes: int,
        max_queue_delay_s: float = 0.0,
        gather_share: float = 0.0,
        on_execution: Callable[[Execution], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        idle_s: float = _IDLE_S,
    ) -> None:
        self._execute = execute
        self._on_execution = on_execution
        self._clock = clock
        self._gather_share = gather_share
        self._gather_until_s = -math.inf
        self._gather_rows = 0
        self._max_batch_size = max_batch_size
        self._queue: RequestQueue[R] = RequestQueue(
            max_batch_size=max_batch_size,
            max_rows=max_queue_rows,
            max_bytes=max_queue_bytes,
            max_delay_s=max_queue_delay_s,
            clock=clock,
        )
        self._lock = threading.Lock()
        # Notified when an execution or a thread has ended; only `close` waits for it.
        self._ended = threading.Condition(self._lock)
        self._workers = WorkerPool(self._lock, idle_s)
        # Overflow instances sleep apart: woken for each request, they would only find it taken by others.
        self._overflow_workers = WorkerPool(self._lock, idle_s)
        self._instance_count = 0
        self._overflow_count = 0
        self._running_count = 0  # executions at this moment, on the pools' threads or inline

    def start(self, instance_count: int, overflow_count: int = 0, name: str = "batcher") -> None:
        """Allow ``instance_count`` instances and ``overflow_count`` overflow ones to run as requests come."""
        with self._lock:
            self._instance_count = self._workers.max_threads = instance_count
            self._overflow_count = self._overflow_workers.max_threads = overflow_count
            self._workers.name, self._overflow_workers.name = name, f"{name} overflow"
            self._wake_next()

    def submit(self, requests: Sequence[R], on_done: OnDone[R], *, run_inline: bool = False) -> None:
        """Queue ``requests`` in order; ``on_done(request, outcome)`` is called exactly once for each.

        Refusals (queue full, closed) are delivered before this returns, everything else from an instance's
        thread. With ``run_inline`` the calling thread itself is the instance for one execution, if one is
        free: right for models that are done sooner than another thread is awake.
        """
        refused: list[tuple[R, Exception]] = []
        with self._lock:
            now_s = self._clock()
            for request in requests:
                refusal = self._queue.add(request, on_done, now_s)
                if refusal is not None:
                    refused.append((request, refusal))
            runs_here = (run_inline and self._due_in_s() == 0) or not self._wake_next()
            if runs_here:
                self._running_count += 1
        for request, refusal in refused:
            _deliver(request, on_done, refusal)
        if runs_here:
            self._run_and_release()

    def run_once(self) -> bool:
        """Take one batch, run it and deliver its outcomes; return False if nothing waited."""
        with self._lock:
            batch, dropped = self._queue.take_batch()
            self._wake_next()
        started_s = self._clock()
        outcomes = self._run(batch) if batch else []
        results = [*dropped, *zip(batch, outcomes, strict=True)]
        with self._lock:
            complete = [(part, outcome) for part, outcome in results if record_outcome(part, outcome)]
        for part, outcome in complete:
            _deliver(part.request, part.on_done, concatenate_slices(part.request, outcome))
        if self._gather_share and batch:
            with self._lock:
                self._gather(sum(len(part.rows) for part in batch), started_s)
        return bool(results)

    def waiting(self) -> tuple[int, int]:
        """Return how many requests wait that have not begun to run, and how many rows wait."""
        with self._lock:  # a copy of pointers; counted after the callers can go on
            parts, row_count = list(self._queue), self._queue.row_count
        return sum(not part.start for part in parts), row_count

    def close(self, grace_s: float) -> None:
        """Refuse new requests, finish waiting ones for ``grace_s`` seconds, answer the rest UNAVAILABLE."""
        give_up_s = time.monotonic() + grace_s
        with self._lock:
            self._queue.close()
            self._wake_all()
            threads = [*self._workers.threads, *self._overflow_workers.threads]
            while self._is_at_work() and time.monotonic() < give_up_s:
                self._ended.wait(give_up_s - time.monotonic())
        for thread in threads:
            thread.join(max(0.0, give_up_s - time.monotonic()))
        with self._lock:
            unanswered = self._queue.clear()
        stopped = UnavailableError("the server stopped before the model ran; try again elsewhere")
        for part in unanswered:
            _deliver(part.request, part.on_done, stopped)

    def _work(self, workers: WorkerPool) -> None:
        while self._take_instance(workers):
            self._run_and_release()

    def _take_instance(self, workers: WorkerPool) -> bool:
        """Wait until a batch is due and an instance is free; return False if the thread should end."""
        with self._lock:
            is_needed = True
            while (due_in_s := self._due_in_s()) != 0:
                if not is_needed or (self._queue.is_closed and not self._queue.row_count):
                    workers.leave()
                    self._ended.notify_all()
                    return False
                is_needed = workers.wait(due_in_s)
            self._running_count += 1
            return True

    def _run_and_release(self) -> None:
        try:
            self.run_once()
        finally:
            with self._lock:
                self._running_count -= 1
                if self._queue.is_closed:
                    self._wake_all()
                else:  # what arrived during an inline run is for a thread of the pools
                    self._wake_next()

    def _wake_next(self) -> bool:
        """Wake a thread if a batch may be formed; those at work look for themselves.

        Returns False if a batch may be formed and no thread will: there is none, and none can be started.
        """
        if self._due_in_s() is None:
            return True
        first, second = self._workers, self._overflow_workers
        if self._running_count >= self._instance_count:
            first, second = second, first
        # A thread of either pool runs whatever is due, so the first one may be busy with the other's batch.
        return (
            first.wake(self._work)
            or second.wake(self._work)
            or self._is_at_work()
            or not self._workers.max_threads
        )

    def _wake_all(self) -> None:
        self._wake_next()
        self._workers.wake_all()
        self._overflow_workers.wake_all()
        self._ended.notify_all()

    def _is_at_work(self) -> bool:
        return bool(self._running_count or self._workers.threads or self._overflow_workers.threads)

    def _due_in_s(self) -> float | None:
        """Return in how many seconds a batch is due, or None if nothing waits or no instance is free."""
        if self._running_count < self._instance_count:
            due_in_s = self._queue.due_in_s(is_idle=not self._running_count)
            if due_in_s is None or self._queue.row_count >= self._gather_rows or self._queue.is_closed:
                return due_in_s
            return max(due_in_s, self._gather_until_s - self._clock())
        has_overflow = self._running_count < self._instance_count + self._overflow_count
        return 0 if has_overflow and self._queue.has_full_batch else None

    def _gather(self, answered_rows: int, started_s: float) -> None:
        """Wait a little until ``answered_rows`` more rows wait, or a batch is full; call with the lock held.

        If nothing waits now, whoever comes next is run at once.
        """
        waiting_rows, now_s = self._queue.row_count, self._clock()
        self._gather_rows = min(answered_rows + waiting_rows, self._max_batch_size) if waiting_rows else 0
        self._gather_until_s = now_s + self._gather_share * (now_s - started_s)

    def _run(self, batch: list[RequestSlice[R]]) -> list[Outcome]:
        """Return one outcome per slice; a failing batch is run again slice by slice."""
        started_s = self._clock()
        try:
            if len(batch) == 1:
                outputs = self._execute_checked(batch[0].rows)
            else:
                outputs = self._execute_checked(np.concatenate([part.rows for part in batch]))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [self._run([part])[0] for part in batch]
        self._record(batch, started_s, self._clock())
        if len(batch) == 1:
            return [outputs]
        outcomes: list[Outcome] = []
        stop = 0
        for part in batch:
            start, stop = stop, stop + len(part.rows)
            outcomes.append(tuple([output[start:stop] for output in outputs]))
        return outcomes

    def _execute_checked(self, rows: NDArray[Any]) -> Arrays:
        outputs = tuple(self._execute(rows))
        for output in outputs:
            if len(output) != len(rows):
                raise RuntimeError(f"the model gave {[len(each) for each in outputs]} rows for {len(rows)}")
        return outputs

    def _record(self, batch: list[RequestSlice[R]], started_s: float, finished_s: float) -> None:
        row_count = 0
        waits_s = []
        for part in batch:
            request = part.request
            row_count += len(part.rows)
            request.finished_s = finished_s
            if not part.start:
                request.started_s = started_s
                waits_s.append(started_s - request.queued_s)
        self._on_execution(Execution(waits_s, row_count, finished_s - started_s))


def _deliver(request: R, on_done: OnDone[R], outcome: Outcome) -> None:
    try:
        on_done(request, outcome)
    except Exception:
        # An instance must outlive whatever one caller's answer does.
        _log.exception("delivering an outcome failed")
