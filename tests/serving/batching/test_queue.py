"""The request queue: its bounds, its batches, and when they are due. The tests set the time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.serving.batching.queue import RequestQueue
from foldserve.serving.batching.request import Request
from foldserve.serving.errors import (
    CancelledError,
    DeadlineExceededError,
    ModelUnloadedError,
    ResourceExhaustedError,
)
from tests.support.batcher_bench import Clock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foldserve.serving.batching.request import Outcome


def request_of(row_count: int, deadline_s: float = math.inf) -> Request:
    return Request(rows=np.zeros((row_count, 1), np.uint8), deadline_s=deadline_s)


def ignore(request: Request, outcome: Outcome) -> None:
    """Takes outcomes that no test here looks at."""


class Queue(RequestQueue[Request]):
    """A queue with defaults, which adds a request per row count."""

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        defaults = {"max_batch_size": 4, "max_rows": 100, "max_bytes": 10**6, "max_delay_s": 0.0}
        super().__init__(**(defaults | limits), clock=self.clock)

    def put(self, *row_counts: int) -> list[Exception | None]:
        return [self.add(request_of(count), ignore, self.clock.now_s) for count in row_counts]

    def take_sizes(self) -> list[list[int]]:
        """Take batches until the queue is empty; return the sizes of their slices."""
        sizes = []
        while self.row_count:
            sizes.append([len(part.rows) for part in self.take_batch()[0]])
        return sizes


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
    assert [(part.start, part.rows.ravel().tolist()) for part in queue] == [
        (0, [0, 1, 2, 3]),
        (4, [4, 5, 6, 7]),
        (8, [8, 9]),
    ]
    assert request.pending_slices == 3


def test_batch_ends_before_the_first_slice_that_does_not_fit() -> None:
    queue = Queue()
    queue.put(2, 3, 1)
    assert queue.take_sizes() == [[2], [3, 1]], "order is kept: 1 does not overtake 3"


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
    request.pending_slices = 0  # as after a failure of another slice
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
    failed.pending_slices = 0
    assert [part.request for part in queue.clear()] == [large, small]
    assert not any(request.pending_slices for request in (large, small))
    assert (queue.row_count, queue.byte_count, [*queue]) == (0, 0, [])


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 11), st.sampled_from([math.inf, 3.0, 9.0])),
        st.tuples(st.just("cancel"), st.integers(0, 30), st.none()),
        st.tuples(st.just("wait"), st.integers(1, 5), st.none()),
        st.tuples(st.just("take"), st.none(), st.none()),
    ),
    max_size=40,
)


@given(
    steps=steps,
    max_batch_size=st.integers(1, 6),
    max_rows=st.integers(1, 30),
    max_bytes=st.integers(1, 30),
    max_delay_s=st.sampled_from([0.0, 2.0]),
)
def test_any_schedule_keeps_order_and_bounds_and_takes_each_row_once(
    *,
    steps: Sequence[tuple[str, Any, Any]],
    max_batch_size: int,
    max_rows: int,
    max_bytes: int,
    max_delay_s: float,
) -> None:
    queue = Queue(
        max_batch_size=max_batch_size, max_rows=max_rows, max_bytes=max_bytes, max_delay_s=max_delay_s
    )
    accepted: list[Request] = []
    left: list[tuple[Request, int]] = []  # request and row, in the order in which they left the queue

    def take() -> None:
        batch, dropped = queue.take_batch()
        assert sum(len(part.rows) for part in batch) <= max_batch_size
        assert not any(part.request.cancelled for part in batch)
        assert all(part.request.deadline_s > queue.clock.now_s for part in batch)
        taken = sorted([*batch, *(part for part, _ in dropped)], key=lambda part: position[id(part)])
        left.extend((part.request, part.start + row) for part in taken for row in range(len(part.rows)))

    for action, number, deadline_s in steps:
        position = {id(part): place for place, part in enumerate(queue)}
        if action == "add":
            request, before = request_of(number, deadline_s), queue.row_count
            fits = not before or before + number <= min(max_rows, max_bytes)
            assert (queue.add(request, ignore, queue.clock.now_s) is None) == fits
            accepted += [request] if fits else []
        elif action == "cancel" and accepted:
            accepted[number % len(accepted)].cancelled = True
        elif action == "wait":
            queue.clock.now_s += number
        elif action == "take":
            take()
        waiting = [*queue]
        assert queue.row_count == queue.byte_count == sum(len(part.rows) for part in waiting)
        assert all(len(part.rows) <= max_batch_size for part in waiting)
        due_in_s = queue.due_in_s(is_idle=False)
        assert due_in_s is None if not waiting else due_in_s is not None and 0 <= due_in_s <= max_delay_s
    while queue.row_count:
        position = {id(part): place for place, part in enumerate(queue)}
        take()
    assert left == [(request, row) for request in accepted for row in range(len(request.rows))]
