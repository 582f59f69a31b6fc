"""Holds waiting requests, and decides which run next and when. Has no threads and no lock of its own."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic

from foldserve.serving.batching.request import OnDone, Outcome, R, RequestSlice, drop_reason
from foldserve.serving.errors import ModelUnloadedError, ResourceExhaustedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class RequestQueue(Generic[R]):
    """Holds requests, cut into slices of at most ``max_batch_size`` rows, until they are taken in batches.

    Args:
        max_batch_size: most rows in one batch.
        max_rows: most rows that may wait. An empty queue accepts a request of any size.
        max_bytes: most bytes of rows that may wait, with the same exception.
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
        self._slices: deque[RequestSlice[R]] = deque()

    def __iter__(self) -> Iterator[RequestSlice[R]]:
        """Return the slices that wait, in order."""
        return iter(self._slices)

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
        if self.row_count and (
            self.row_count + row_count > self._max_rows or self.byte_count + byte_count > self._max_bytes
        ):
            return ResourceExhaustedError(
                f"the queue is full: {self.row_count} images ({self.byte_count} bytes) wait, this request "
                f"brings {row_count} ({byte_count} bytes), and at most {self._max_rows} "
                f"({self._max_bytes} bytes) may wait; try again later, or raise --max-queue-rows or "
                "--max-queue-mib"
            )
        request.queued_s = now_s
        if row_count <= self._max_batch_size:
            request.pending_slices = 1
            self._slices.append(RequestSlice(request, on_done, 0, request.rows))
        else:
            starts = range(0, row_count, self._max_batch_size)
            request.pending_slices = len(starts)
            request.slice_outputs = {}
            self._slices.extend(
                RequestSlice(request, on_done, start, request.rows[start : start + self._max_batch_size])
                for start in starts
            )
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
            or (is_idle and len(self._slices) == 1)
            or self.is_closed
        ):
            return 0
        return max(0, self._slices[0].request.queued_s + self._max_delay_s - self._clock())

    def take_batch(self) -> tuple[list[RequestSlice[R]], list[tuple[RequestSlice[R], Outcome]]]:
        """Remove slices from the head while they fit into one batch.

        Returns the batch, and separately the cancelled and expired slices with the reason.
        """
        batch: list[RequestSlice[R]] = []
        dropped: list[tuple[RequestSlice[R], Outcome]] = []
        room = self._max_batch_size
        now_s = self._clock()
        while self._slices and room:
            head = self._slices[0]
            reason = drop_reason(head.request, now_s)
            if reason is None and len(head.rows) > room:
                break
            self._slices.popleft()
            self.row_count -= len(head.rows)
            self.byte_count -= head.rows.nbytes
            if reason is not None:
                dropped.append((head, reason))
            elif head.request.pending_slices:  # else another slice has already failed the request
                batch.append(head)
                room -= len(head.rows)
        return batch, dropped

    def close(self) -> None:
        """Refuse new requests from now on; those that wait are due at once."""
        self.is_closed = True

    def clear(self) -> list[RequestSlice[R]]:
        """Remove everything; return one slice of each request that still needs an outcome."""
        unanswered = {id(part.request): part for part in self._slices if part.request.pending_slices}
        for part in unanswered.values():
            part.request.pending_slices = 0
        self._slices.clear()
        self.row_count = self.byte_count = 0
        return list(unanswered.values())
