"""Dynamic batching: many callers' rows in, one execution, each caller's own rows out.

A free instance takes what waits, up to ``max_batch_size`` rows: a lone caller pays nothing, and under load
batches grow by themselves while the instances are busy. Spare instances take nothing but full batches: they
bring idle processors in where batches can grow no further, and leave small ones together. With a
``max_queue_delay_s`` it gives company that long to arrive, but only where something else is in flight
already. Knows neither gRPC nor ONNX Runtime, only arrays whose first dimension counts rows, and a function
that runs them.

What holds for every schedule of arrivals, cancellations and failures:
- each request submitted gets exactly one outcome, made of its own rows in its own order;
- no execution sees more than ``max_batch_size`` rows: a larger request is cut, and its pieces rejoined;
- cancelled and expired requests are dropped while a batch is formed and never reach the model;
- a failing batch is run again request by request, so only the guilty fail;
- what waits is bounded in rows and bytes, and a full queue refuses at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from foldserve.serving.batching.request import (
    Arrays,
    Execution,
    OnDone,
    Outcome,
    Request,
    RequestSlice,
    concatenate_slices,
    drop_reason,
)
from foldserve.serving.batching.worker_pool import WorkerPool
from foldserve.serving.errors import ModelUnloadedError, ResourceExhaustedError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

R = TypeVar("R", bound=Request)

# An instance's thread without work for so long ends; the next request begins another, which takes 0.1 ms.
_IDLE_S = 10.0

_log = logging.getLogger(__name__)


class DynamicBatcher(Generic[R]):
    """Queues requests and runs them in batches, one an instance at the same time.

    Args:
        execute: runs [n, ...] and returns arrays of n rows each; called from one thread an instance.
        max_batch_size: most rows in one execution.
        max_queue_rows: most rows that wait. An empty queue takes a request of any size.
        max_queue_bytes: most bytes of rows that wait, with the same exception.
        max_queue_delay_s: how long a request may wait for company, where something else is in flight.
        on_execution: told of each execution that succeeded, from the thread that ran it.
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
        on_execution: Callable[[Execution], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        idle_s: float = _IDLE_S,
    ) -> None:
        assert max_batch_size >= 1
        self._execute = execute
        self._max_batch_size = max_batch_size
        self._max_queue_rows = max_queue_rows
        self._max_queue_bytes = max_queue_bytes
        self._max_queue_delay_s = max_queue_delay_s
        self._on_execution = on_execution
        self._clock = clock
        lock = threading.Lock()
        self._changed = threading.Condition(lock)  # of interest to `close` alone: something has ended
        self._workers = WorkerPool(lock, idle_s)
        # Spare instances sleep apart: woken for each request, they would only find that others have taken it.
        self._overflow_workers = WorkerPool(lock, idle_s)
        self._queue: deque[RequestSlice[R]] = deque()
        self._queued_rows = 0
        self._queued_bytes = 0
        self._closed = False
        self._instance_count = 0
        self._overflow_count = 0
        self._running_count = 0  # executions at this moment, on threads of ours or lent ones

    def start(self, instance_count: int, overflow_count: int = 0, name: str = "batcher") -> None:
        """Let ``instance_count`` instances work, and ``overflow_count`` spare ones, as requests need them."""
        with self._changed:
            self._instance_count = self._workers.max_threads = instance_count
            self._overflow_count = self._overflow_workers.max_threads = overflow_count
            self._workers.name, self._overflow_workers.name = name, f"{name} spare"
            self._wake_next()

    def submit(self, requests: Sequence[R], on_done: OnDone[R], *, run_inline: bool = False) -> None:
        """Queue ``requests`` in order; ``on_done(request, outcome)`` is called exactly once for each.

        Refusals (queue full, closed) are delivered before this returns, everything else from an instance's
        thread. With ``run_inline`` the calling thread is itself the instance for one execution, where one is
        free: right for models that are done sooner than another thread is awake.
        """
        refused: list[tuple[R, Exception]] = []
        with self._changed:
            now_s = self._clock()
            for request in requests:
                refusal = self._refusal(request)
                if refusal is None:
                    request.queued_s = now_s
                    self._enqueue(request, on_done)
                else:
                    refused.append((request, refusal))
            lent = (run_inline and self._due_in_s() == 0) or not self._wake_next()
            if lent:
                self._running_count += 1
        for request, refusal in refused:
            _deliver(request, on_done, refusal)
        if lent:
            self._run_and_release()

    def run_once(self) -> bool:
        """Form one batch, run it and deliver; return False where nothing waited. All that the threads do."""
        with self._changed:
            batch, dropped = self._form_batch()
            self._wake_next()
        outcomes = self._run(batch) if batch else []
        settled = [*dropped, *zip(batch, outcomes, strict=True)]
        with self._changed:  # pieces of one request may finish on several instances at once
            complete = [(piece, outcome) for piece, outcome in settled if self._settle(piece, outcome)]
        for piece, outcome in complete:
            _deliver(piece.request, piece.on_done, concatenate_slices(piece.request, outcome))
        return bool(settled)

    def waiting(self) -> tuple[int, int]:
        """Return how many requests, of which nothing has run yet, and how many rows wait."""
        with self._changed:  # a copy of pointers; counted once the callers can go on
            pieces, row_count = list(self._queue), self._queued_rows
        return sum(not piece.start for piece in pieces), row_count

    def close(self, grace_s: float) -> None:
        """Refuse new requests, finish what waits within ``grace_s`` seconds, answer the rest UNAVAILABLE."""
        give_up_s = time.monotonic() + grace_s
        with self._changed:
            self._closed = True
            self._wake_all()
            threads = [*self._workers.threads, *self._overflow_workers.threads]
            while self._is_at_work() and time.monotonic() < give_up_s:
                self._changed.wait(give_up_s - time.monotonic())
        for thread in threads:
            thread.join(max(0.0, give_up_s - time.monotonic()))
        with self._changed:
            left = [piece for piece in self._queue if piece.request.pending_slices]
            for piece in left:
                piece.request.pending_slices = 0
            self._queue.clear()
            self._queued_rows = self._queued_bytes = 0
        stopped = UnavailableError("the server stopped before the model ran; try again elsewhere")
        for piece in {id(piece.request): piece for piece in left}.values():
            _deliver(piece.request, piece.on_done, stopped)

    def _work(self, workers: WorkerPool) -> None:
        while self._take_instance(workers):
            self._run_and_release()

    def _take_instance(self, workers: WorkerPool) -> bool:
        """Wait until a batch is due and an instance free; return False once none has been, or will be."""
        with self._changed:
            is_needed = True
            while (due_in_s := self._due_in_s()) != 0:
                if not is_needed or (self._closed and not self._queue):
                    workers.leave()
                    self._changed.notify_all()
                    return False
                is_needed = workers.wait(due_in_s)
            self._running_count += 1
            return True

    def _run_and_release(self) -> None:
        try:
            self.run_once()
        finally:
            with self._changed:
                self._running_count -= 1
                if self._closed:
                    self._wake_all()
                else:  # what came while a lent thread ran is for an own one
                    self._wake_next()

    def _wake_next(self) -> bool:
        """Wake a thread for the next batch where one may be formed; those at work look for themselves.

        Returns False where it may and no thread will: there is none, and the system gives none.
        """
        if self._due_in_s() is None:
            return True
        is_free = self._running_count < self._instance_count
        first, second = (
            (self._workers, self._overflow_workers) if is_free else (self._overflow_workers, self._workers)
        )
        # A spare thread may be at what is an instance's, and the other way round.
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
        self._changed.notify_all()

    def _is_at_work(self) -> bool:
        return bool(self._running_count or self._workers.threads or self._overflow_workers.threads)

    def _due_in_s(self) -> float | None:
        """Return in how many seconds a batch should be formed; None where nothing waits or none is free."""
        if not self._queue:
            return None
        if self._running_count >= self._instance_count:
            has_spare = self._running_count < self._instance_count + self._overflow_count
            return 0 if has_spare and self._queued_rows >= self._max_batch_size else None
        is_alone = len(self._queue) == 1 and not self._running_count
        if (
            not self._max_queue_delay_s
            or is_alone
            or self._closed
            or self._queued_rows >= self._max_batch_size
        ):
            return 0
        return max(0, self._queue[0].request.queued_s + self._max_queue_delay_s - self._clock())

    def _refusal(self, request: R) -> Exception | None:
        if self._closed:
            return ModelUnloadedError("the model is draining; try again, or elsewhere")
        if not self._queue:
            return None
        row_count, byte_count = len(request.rows), request.rows.nbytes
        if self._queued_rows + row_count <= self._max_queue_rows and (
            self._queued_bytes + byte_count <= self._max_queue_bytes
        ):
            return None
        return ResourceExhaustedError(
            f"the queue is full: {self._queued_rows} images ({self._queued_bytes} bytes) wait, this request "
            f"brings {row_count} ({byte_count} bytes), and at most {self._max_queue_rows} "
            f"({self._max_queue_bytes} bytes) may wait; try again later, or raise --max-queue-rows or "
            "--max-queue-mib"
        )

    def _enqueue(self, request: R, on_done: OnDone[R]) -> None:
        row_count = len(request.rows)
        assert row_count >= 1
        if row_count <= self._max_batch_size:
            request.pending_slices = 1
            self._queue.append(RequestSlice(request, on_done, 0, request.rows))
        else:
            starts = range(0, row_count, self._max_batch_size)
            request.pending_slices = len(starts)
            request.slice_outputs = {}
            self._queue.extend(
                RequestSlice(request, on_done, start, request.rows[start : start + self._max_batch_size])
                for start in starts
            )
        self._queued_rows += row_count
        self._queued_bytes += request.rows.nbytes

    def _form_batch(self) -> tuple[list[RequestSlice[R]], list[tuple[RequestSlice[R], Outcome]]]:
        """Take pieces from the queue's head while they fit, dropping what nobody waits for any more."""
        batch: list[RequestSlice[R]] = []
        dropped: list[tuple[RequestSlice[R], Outcome]] = []
        room = self._max_batch_size
        now_s = self._clock()
        while self._queue and room:
            piece = self._queue[0]
            reason = drop_reason(piece.request, now_s)
            if reason is None and len(piece.rows) > room:
                break
            self._queue.popleft()
            self._queued_rows -= len(piece.rows)
            self._queued_bytes -= piece.rows.nbytes
            if reason is not None:
                dropped.append((piece, reason))
            elif piece.request.pending_slices:  # else a sibling piece has already failed the request
                batch.append(piece)
                room -= len(piece.rows)
        return batch, dropped

    def _run(self, batch: list[RequestSlice[R]]) -> list[Outcome]:
        """Return one outcome a piece; a failing batch is run again piece by piece."""
        started_s = self._clock()
        try:
            if len(batch) == 1:
                outputs = self._execute_checked(batch[0].rows)
            else:
                outputs = self._execute_checked(np.concatenate([piece.rows for piece in batch]))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [self._run([piece])[0] for piece in batch]
        self._record(batch, started_s, self._clock())
        if len(batch) == 1:
            return [outputs]
        outcomes: list[Outcome] = []
        stop = 0
        for piece in batch:
            start, stop = stop, stop + len(piece.rows)
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
        for piece in batch:
            request = piece.request
            row_count += len(piece.rows)
            request.finished_s = finished_s
            if not piece.start:
                request.started_s = started_s
                waits_s.append(started_s - request.queued_s)
        self._on_execution(Execution(waits_s, row_count, finished_s - started_s))

    def _settle(self, piece: RequestSlice[R], outcome: Outcome) -> bool:
        """Note a piece's outcome; return whether the request's is now known, which happens once."""
        request = piece.request
        if not request.pending_slices:
            return False
        if isinstance(outcome, Exception):
            request.pending_slices = 0
            return True
        request.pending_slices -= 1
        if request.slice_outputs is not None:
            request.slice_outputs[piece.start] = outcome
        return not request.pending_slices


def _deliver(request: R, on_done: OnDone[R], outcome: Outcome) -> None:
    try:
        on_done(request, outcome)
    except Exception:
        # An instance must outlive whatever one caller's answer does.
        _log.exception("delivering an outcome failed")
