"""The request queue: its bounds, its batches, and when they are due. The tests set the time."""

from __future__ import annotations

import numpy as np
import pytest

from foldserve.serving.batching.request import Request
from foldserve.serving.errors import (
    CancelledError,
    DeadlineExceededError,
    ModelUnloadedError,
    ResourceExhaustedError,
)
from tests.support.request_queue import Queue, ignore, request_of


def test_full_queue_is_refused_and_says_how_full() -> None:
    queue = Queue(max_rows=3)
    accepted, refusal = queue.put(2, 2)
    assert accepted is None
    assert isinstance(refusal, ResourceExhaustedError)
    assert str(refusal).startswith("the queue is full: 2 images (2 bytes)")
    assert "at most 3 (1000000 bytes)" in str(refusal)


@pytest.mark.parametrize("limits", [{"max_rows": 4}, {"max_bytes": 4}], ids=["rows", "bytes"])
def test_queue_accepts_exactly_its_limit(limits: dict[str, int]) -> None:
    refusals = Queue(**limits).put(2, 2, 1)
    assert [type(refusal) for refusal in refusals] == [type(None), type(None), ResourceExhaustedError]


@pytest.mark.parametrize("limits", [{"max_rows": 3}, {"max_bytes": 3}], ids=["rows", "bytes"])
def test_empty_queue_accepts_a_request_of_any_size(limits: dict[str, int]) -> None:
    queue = Queue(**limits)
    assert queue.put(9) == [None]
    assert queue.take_sizes() == [[4], [4], [1]]
    assert queue.put(9) == [None], "and again once it is empty"


def test_request_of_exactly_a_batch_is_not_cut() -> None:
    queue, request = Queue(), request_of(4)
    queue.add(request, ignore, 0.0)
    (only,) = queue
    assert only.rows is request.rows
    assert request.slice_outputs is None


def test_slices_cover_a_large_request_in_order() -> None:
    queue, request = Queue(), Request(rows=np.arange(10)[:, None])
    queue.add(request, ignore, 0.0)
    taken = [queue.take_batch()[0] for _ in range(3)]
    assert [[(part.start, part.rows.ravel().tolist()) for part in batch] for batch in taken] == [
        [(0, [0, 1, 2, 3])],
        [(4, [4, 5, 6, 7])],
        [(8, [8, 9])],
    ]
    assert request.pending_rows == 10, "no row has an outcome yet"
    assert np.shares_memory(taken[0][0].rows, request.rows), "and none is copied"


def test_request_that_does_not_fit_fills_the_batch_with_a_part() -> None:
    queue = Queue()
    queue.put(2, 3, 2)
    assert queue.take_sizes() == [[2, 2], [1, 2]]


def test_requests_that_all_fit_are_taken_as_they_came() -> None:
    queue = Queue()
    queue.put(2, 1, 1)
    assert queue.take_sizes() == [[2, 1, 1]]


def test_cancelled_and_expired_requests_make_room_in_the_batch() -> None:
    queue = Queue()
    cancelled, expired, live = request_of(4), request_of(4, deadline_s=1.0), request_of(4)
    for request in (cancelled, expired, live):
        queue.add(request, ignore, 0.0)
    cancelled.cancelled, queue.clock.now_s = True, 1.0
    batch, dropped = queue.take_batch()
    assert [part.request for part in batch] == [live]
    assert [(part.request, type(reason)) for part, reason in dropped] == [
        (cancelled, CancelledError),
        (expired, DeadlineExceededError),
    ]
    assert (queue.row_count, queue.byte_count) == (0, 0)


def test_cancelled_request_that_does_not_fit_lets_the_next_one_into_the_batch() -> None:
    queue, cancelled = Queue(), request_of(4)
    queue.put(2)
    queue.add(cancelled, ignore, 0.0)
    queue.put(2)
    cancelled.cancelled = True
    batch, dropped = queue.take_batch()
    assert [len(part.rows) for part in batch] == [2, 2]
    assert [part.request for part, _ in dropped] == [cancelled]


def test_expired_request_behind_a_full_batch_is_not_looked_at() -> None:
    """It is dropped with the next batch, not before its turn."""
    queue = Queue(max_batch_size=2)
    queue.put(2)
    queue.add(request_of(1, deadline_s=1.0), ignore, 0.0)
    queue.clock.now_s = 2.0
    assert not queue.take_batch()[1]
    assert len(queue.take_batch()[1]) == 1


def test_slices_of_a_failed_request_are_not_taken() -> None:
    queue, request = Queue(), request_of(8)
    queue.add(request, ignore, 0.0)
    queue.take_batch()
    request.pending_rows = 0  # as after a failure of that slice
    assert queue.take_batch() == ([], [])
    assert queue.row_count == 0


def test_nothing_is_due_in_an_empty_queue() -> None:
    assert Queue(max_delay_s=1.0).due_in_s(is_idle=True) is None
    assert Queue().due_in_s(is_idle=False) is None


def test_lone_request_waits_only_if_something_runs() -> None:
    queue = Queue(max_delay_s=1.0)
    queue.put(1)
    assert queue.due_in_s(is_idle=True) == 0
    assert queue.due_in_s(is_idle=False) == 1.0


def test_delay_counts_from_the_first_request_until_the_batch_is_full() -> None:
    queue = Queue(max_delay_s=1.0)
    queue.clock.now_s = 8.0
    queue.put(1)
    queue.clock.now_s = 8.25
    queue.put(1)
    assert queue.due_in_s(is_idle=True) == 0.75
    queue.clock.now_s = 9.5
    assert queue.due_in_s(is_idle=True) == 0, "never negative"
    queue.clock.now_s = 8.5
    assert not queue.has_full_batch
    queue.put(2)
    assert queue.has_full_batch
    assert queue.due_in_s(is_idle=True) == 0


def test_without_a_delay_requests_are_due_at_once() -> None:
    queue = Queue()
    queue.put(1, 1)
    queue.clock.now_s = -1.0  # a clock that steps back must not turn no delay into one of a second
    assert queue.due_in_s(is_idle=False) == 0


def test_closed_queue_refuses_and_delays_nothing() -> None:
    queue = Queue(max_delay_s=30.0)
    queue.put(1, 1)
    assert queue.due_in_s(is_idle=False) == 30.0
    queue.close()
    assert queue.due_in_s(is_idle=False) == 0
    assert isinstance(queue.put(1)[0], ModelUnloadedError)
    assert queue.row_count == 2


def test_clearing_returns_each_unanswered_request_once() -> None:
    queue, large, small, failed = Queue(), request_of(9), request_of(1), request_of(1)
    for request in (large, small, failed):
        queue.add(request, ignore, 0.0)
    failed.pending_rows = 0
    assert [part.request for part in queue.clear()] == [large, small]
    assert not any(request.pending_rows for request in (large, small))
    assert (queue.row_count, queue.byte_count, [*queue]) == (0, 0, [])
