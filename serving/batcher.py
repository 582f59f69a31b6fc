"""Dynamic batching: many callers' rows in, one execution, each caller's own rows out.

A free instance takes what waits, up to ``max_batch_size`` rows, and never waits for more: a lone caller pays
nothing, and under load batches grow by themselves while the instances are busy. Knows neither gRPC nor ONNX
Runtime, only arrays whose first dimension counts rows, and a function that runs them.

What holds for every schedule of arrivals, cancellations and failures:
- each request submitted gets exactly one outcome, made of its own rows in its own order;
- no execution sees more than ``max_batch_size`` rows: a larger request is cut, and its pieces rejoined;
- cancelled and expired requests are dropped while a batch is formed and never reach the model;
- a failing batch is run again request by request, so only the guilty fail;
- what waits is bounded in rows and bytes, and a full queue refuses at once.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from serving.errors import CancelledError, DeadlineExceededError, ResourceExhaustedError, UnavailableError

Arrays: TypeAlias = tuple[NDArray[Any], ...]
Outcome: TypeAlias = Arrays | Exception

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """One caller's rows. Transports extend it with what they need to answer.

    ``rows`` [n, ...] with n >= 1, the same trailing shape and type for all requests of one batcher.
    ``deadline_s`` is on the batcher's clock. Set ``cancelled`` from any thread: the request is then dropped
    if it has not run yet.
    """

    rows: NDArray[Any]
    deadline_s: float = math.inf
    cancelled: bool = False
    _unfinished_pieces: int = field(default=0, init=False, repr=False)
    _parts: dict[int, Arrays] = field(default_factory=dict, init=False, repr=False)


R = TypeVar("R", bound=Request)
OnDone: TypeAlias = Callable[[R, Outcome], None]


@dataclass(slots=True, eq=False)
class _Piece(Generic[R]):
    """At most ``max_batch_size`` consecutive rows of one request, starting at ``start``."""

    request: R
    on_done: OnDone[R]
    start: int
    rows: NDArray[Any]


class Batcher(Generic[R]):
    """Queues requests and runs them in batches on as many instances as it has threads.

    Args:
        execute: runs [n, ...] and returns arrays of n rows each; called from one thread an instance.
        max_batch_size: most rows in one execution.
        max_queue_rows: most rows that wait. An empty queue takes a request of any size.
        max_queue_bytes: most bytes of rows that wait, with the same exception.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        execute: Callable[[NDArray[Any]], Sequence[NDArray[Any]]],
        *,
        max_batch_size: int,
        max_queue_rows: int,
        max_queue_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert max_batch_size >= 1
        self._execute = execute
        self._max_batch_size = max_batch_size
        self._max_queue_rows = max_queue_rows
        self._max_queue_bytes = max_queue_bytes
        self._clock = clock
        self._changed = threading.Condition()
        self._queue: deque[_Piece[R]] = deque()
        self._queued_rows = 0
        self._queued_bytes = 0
        self._closed = False
        self._threads: list[threading.Thread] = []

    def start(self, instance_count: int, name: str = "batcher") -> None:
        """Start the instances' threads."""
        for index in range(instance_count):
            thread = threading.Thread(target=self._work, name=f"{name}#{index}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def submit(self, requests: Sequence[R], on_done: OnDone[R]) -> None:
        """Queue ``requests`` in order; ``on_done(request, outcome)`` is called exactly once for each.

        Refusals (queue full, closed) are delivered before this returns, everything else from an instance's
        thread.
        """
        refused: list[tuple[R, Exception]] = []
        with self._changed:
            before = len(self._queue)
            for request in requests:
                refusal = self._refusal(request)
                if refusal is None:
                    self._enqueue(request, on_done)
                else:
                    refused.append((request, refusal))
            self._changed.notify(len(self._queue) - before)
        for request, refusal in refused:
            _deliver(request, on_done, refusal)

    def run_once(self) -> bool:
        """Form one batch, run it and deliver; return False where nothing waited. All that the threads do."""
        with self._changed:
            batch, dropped = self._form_batch()
        for piece, reason in dropped:
            self._settle(piece, reason)
        if batch:
            for piece, outcome in zip(batch, self._run(batch), strict=True):
                self._settle(piece, outcome)
        return bool(batch or dropped)

    def close(self, grace_s: float) -> None:
        """Refuse new requests, finish what waits within ``grace_s`` seconds, answer the rest UNAVAILABLE."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        give_up_s = time.monotonic() + grace_s
        for thread in self._threads:
            thread.join(max(0.0, give_up_s - time.monotonic()))
        with self._changed:
            left = list(self._queue)
            self._queue.clear()
            self._queued_rows = self._queued_bytes = 0
        for piece in left:
            self._settle(
                piece, UnavailableError("the server stopped before the model ran; try again elsewhere")
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    if self._closed:
                        return
                    self._changed.wait()
            self.run_once()

    def _refusal(self, request: R) -> Exception | None:
        if self._closed:
            return UnavailableError("the model is draining; try again, or elsewhere")
        if not self._queue:
            return None
        row_count, byte_count = len(request.rows), request.rows.nbytes
        if self._queued_rows + row_count <= self._max_queue_rows and (
            self._queued_bytes + byte_count <= self._max_queue_bytes
        ):
            return None
        return ResourceExhaustedError(
            f"the queue is full: {self._queued_rows} images ({self._queued_bytes} bytes) wait, this request "
            "brings "
            f"{row_count} ({byte_count} bytes), and at most {self._max_queue_rows} ({self._max_queue_bytes} "
            "bytes) "
            "may wait; try again later, or raise --max-queue-rows or --max-queue-mib"
        )

    def _enqueue(self, request: R, on_done: OnDone[R]) -> None:
        row_count = len(request.rows)
        assert row_count >= 1
        if row_count <= self._max_batch_size:
            request._unfinished_pieces = 1  # the batcher's own bookkeeping, kept with the request
            self._queue.append(_Piece(request, on_done, 0, request.rows))
        else:
            starts = range(0, row_count, self._max_batch_size)
            request._unfinished_pieces = len(starts)
            self._queue.extend(
                _Piece(request, on_done, start, request.rows[start : start + self._max_batch_size])
                for start in starts
            )
        self._queued_rows += row_count
        self._queued_bytes += request.rows.nbytes

    def _form_batch(self) -> tuple[list[_Piece[R]], list[tuple[_Piece[R], Exception]]]:
        """Take pieces from the queue's head while they fit, dropping what nobody waits for any more."""
        batch: list[_Piece[R]] = []
        dropped: list[tuple[_Piece[R], Exception]] = []
        room = self._max_batch_size
        now_s = self._clock()
        while self._queue and room:
            piece = self._queue[0]
            reason = _drop_reason(piece.request, now_s)
            if reason is None and len(piece.rows) > room:
                break
            self._queue.popleft()
            self._queued_rows -= len(piece.rows)
            self._queued_bytes -= piece.rows.nbytes
            if reason is not None:
                dropped.append((piece, reason))
            elif piece.request._unfinished_pieces:  # else a sibling piece has already failed the request
                batch.append(piece)
                room -= len(piece.rows)
        return batch, dropped

    def _run(self, batch: list[_Piece[R]]) -> list[Outcome]:
        """Return one outcome a piece; a failing batch is run again piece by piece."""
        try:
            if len(batch) == 1:
                return [self._execute_checked(batch[0].rows)]
            outputs = self._execute_checked(np.concatenate([piece.rows for piece in batch]))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [self._run([piece])[0] for piece in batch]
        outcomes: list[Outcome] = []
        stop = 0
        for piece in batch:
            start, stop = stop, stop + len(piece.rows)
            outcomes.append(tuple(output[start:stop] for output in outputs))
        return outcomes

    def _execute_checked(self, rows: NDArray[Any]) -> Arrays:
        outputs = tuple(self._execute(rows))
        if any(len(output) != len(rows) for output in outputs):
            raise RuntimeError(f"the model gave {[len(output) for output in outputs]} rows for {len(rows)}")
        return outputs

    def _settle(self, piece: _Piece[R], outcome: Outcome) -> None:
        """Record a piece's outcome; deliver the request's once it is known."""
        request = piece.request
        with self._changed:  # pieces of one request may finish on several instances at once
            if not request._unfinished_pieces:
                return
            if isinstance(outcome, Exception):
                request._unfinished_pieces = 0
            else:
                request._unfinished_pieces -= 1
                if request._unfinished_pieces or request._parts:
                    request._parts[piece.start] = outcome
                if request._unfinished_pieces:
                    return
        if request._parts and not isinstance(outcome, Exception):
            in_order = [request._parts[start] for start in sorted(request._parts)]
            outcome = tuple(np.concatenate(parts) for parts in zip(*in_order, strict=True))
        _deliver(request, piece.on_done, outcome)


def _drop_reason(request: Request, now_s: float) -> Exception | None:
    if request.cancelled:
        return CancelledError("the caller cancelled before the model ran")
    if request.deadline_s <= now_s:
        return DeadlineExceededError("the deadline passed while the request waited in the queue")
    return None


def _deliver(request: R, on_done: OnDone[R], outcome: Outcome) -> None:
    try:
        on_done(request, outcome)
    except Exception:
        # An instance must outlive whatever one caller's answer does.
        _log.exception("delivering an outcome failed")
