"""Holds waiting requests, and decides which run next and when. Has no threads and no lock of its own.

If all that waits fits into one batch, it is taken as it came. Otherwise callers take turns, so that a request
of one row need not wait for what others have queued: see `caller_lines`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic

from foldserve.serving.batching.caller_lines import CallerLines
from foldserve.serving.batching.request import OnDone, Outcome, R, RequestSlice, cut, drop_reason
from foldserve.serving.errors import ModelUnloadedError, ResourceExhaustedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Requests of one row may exceed a queue's limits by this share, so that large requests cannot shut them out.
_RESERVE = 1 / 8


class RequestQueue(Generic[R]):
    """Holds requests until they are taken in batches of at most ``max_batch_size`` rows.

    Args:
        max_batch_size: most rows in one batch.
        max_rows: most rows that may wait. An empty queue accepts a request of any size. If larger requests
            fill the queue, requests of one row are accepted until an eighth of ``max_rows`` requests wait.
        max_bytes: most bytes of rows that may wait, with the same exceptions.
        max_delay_s: longest time a request waits for a fuller batch.
        clock: monotonic seconds.

    Attributes:
        row_count: rows that wait.
        byte_count: bytes of those rows.
        is_closed: whether new requests are refused.
    """

    def __init__(
        self,
        *,
        max_batch_size: int,
        max_rows: int,
        max_bytes: int,
        max_delay_s: float,
        clock: Callable[[], float],
    ) -> None:
        assert max_batch_size >= 1
        self.row_count = 0
        self.byte_count = 0
        self.is_closed = False
        self._max_batch_size = max_batch_size
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._max_delay_s = max_delay_s
        self._clock = clock
        # Requests in the order in which they came; with more than one batch waiting, the older ones stand in
        # lines. Lines cost a microsecond per request, and without them no request would go any sooner.
        self._arrived: deque[RequestSlice[R]] = deque()
        self._lines: CallerLines[R] = CallerLines(max_batch_size)

    def __iter__(self) -> Iterator[RequestSlice[R]]:
        """Return what waits, in the order in which it came."""
        return iter([*self._lines.in_order(), *self._arrived])

    @property
    def has_full_batch(self) -> bool:
        """Whether ``max_batch_size`` rows or more wait."""
        return self.row_count >= self._max_batch_size

    def add(self, request: R, on_done: OnDone[R], now_s: float) -> Exception | None:
        """Append a request, or return why it is refused."""
        row_count, byte_count = len(request.rows), request.rows.nbytes
        assert row_count >= 1
        if self.is_closed:
            return ModelUnloadedError("the model is draining; try again, or use another server")
        if (
            self.row_count
            and (
                self.row_count + row_count > self._max_rows or self.byte_count + byte_count > self._max_bytes
            )
            and not (row_count == 1 and self._has_reserve_for(byte_count))
        ):
            return ResourceExhaustedError(
                f"the queue is full: {self.row_count} images ({self.byte_count} bytes) wait, this request "
                f"brings {row_count} ({byte_count} bytes), and at most {self._max_rows} "
                f"({self._max_bytes} bytes) may wait; try again later, or raise --max-queue-rows or "
                "--max-queue-mib"
            )
        request.queued_s = now_s
        request.pending_rows = row_count
        self._arrived.append(RequestSlice(request, on_done, 0, request.rows))
        self.row_count += row_count
        self.byte_count += byte_count
        return None

    def due_in_s(self, *, is_idle: bool) -> float | None:
        """Return in how many seconds a batch should be taken, or None if nothing waits.

        ``is_idle``: nothing runs at the moment. A request that is alone then never waits.
        """
        if not self.row_count:
            return None
        if (
            not self._max_delay_s
            or self.row_count >= self._max_batch_size
            or (is_idle and len(self._arrived) == 1)
            or self.is_closed
        ):
            return 0
        # Less than a batch: nothing stands in lines.
        return max(0, self._arrived[0].request.queued_s + self._max_delay_s - self._clock())

    def take_batch(self) -> tuple[list[RequestSlice[R]], list[tuple[RequestSlice[R], Outcome]]]:
        """Remove the rows of the next batch, cutting a request if only a part of it fits.

        Returns the batch, and separately the cancelled and expired requests with the reason. If more than
        ``max_batch_size`` rows wait that need to run, the batch is full.
        """
        batch: list[RequestSlice[R]] = []
        dropped: list[tuple[RequestSlice[R], Outcome]] = []
        if self.row_count > self._max_batch_size:
            self._take_in_turn(batch, dropped)
        else:
            self._take_all(batch, dropped)
        return batch, dropped

    def close(self) -> None:
        """Refuse new requests from now on; those that wait are due at once."""
        self.is_closed = True

    def clear(self) -> list[RequestSlice[R]]:
        """Remove everything; return the rest of each request that still needs an outcome."""
        unanswered = [part for part in self if part.request.pending_rows]
        for part in unanswered:
            part.request.pending_rows = 0
        self._lines.clear()
        self._arrived.clear()
        self.row_count = self.byte_count = 0
        return unanswered

    def _take_all(self, batch: list[RequestSlice[R]], dropped: list[tuple[RequestSlice[R], Outcome]]) -> None:
        now_s = self._clock()
        for part in self._arrived:
            reason = drop_reason(part.request, now_s)
            if reason is not None:
                dropped.append((part, reason))
            elif part.request.pending_rows:  # else another part has already failed the request
                batch.append(part)
        self._arrived.clear()
        self.row_count = self.byte_count = 0

    def _take_in_turn(
        self, batch: list[RequestSlice[R]], dropped: list[tuple[RequestSlice[R], Outcome]]
    ) -> None:
        lines, room, now_s = self._lines, self._max_batch_size, self._clock()
        for request in self._arrived:
            lines.add(request)
        self._arrived.clear()
        while room and (part := lines.first()) is not None:
            reason = drop_reason(part.request, now_s)
            if reason is not None or not part.request.pending_rows:
                lines.remove_first(0)
                self._forget_rows(part)
                if reason is not None:
                    dropped.append((part, reason))
                continue
            if len(part.rows) > room:
                taken = cut(part, room)  # the rest stays where it is
                lines.give(room)
            else:
                taken = part
                lines.remove_first(len(part.rows))
            self._forget_rows(taken)
            batch.append(taken)
            room -= len(taken.rows)
        lines.end_batch()
        if self.row_count <= self._max_batch_size:
            self._arrived.extend(lines.clear())

    def _forget_rows(self, part: RequestSlice[R]) -> None:
        self.row_count -= len(part.rows)
        self.byte_count -= part.rows.nbytes

    def _has_reserve_for(self, byte_count: int) -> bool:
        """Return whether one more row of ``byte_count`` bytes may wait although the queue is full."""
        request_count = len(self._arrived) + self._lines.request_count
        return request_count < self._max_rows * _RESERVE and (
            (request_count + 1) * byte_count <= self._max_bytes * _RESERVE
        )
