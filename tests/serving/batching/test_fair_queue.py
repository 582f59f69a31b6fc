"""Callers take turns: none waits for what others have queued. The tests count batches, not seconds."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.fairness.first_come import FirstComeQueue
from foldserve.serving.errors import ResourceExhaustedError
from tests.support.request_queue import Queue, ignore, request_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from foldserve.serving.batching.request import Request, RequestSlice


class FirstCome(Queue, FirstComeQueue):
    """The queue that this one is compared with."""


def put(queue: Queue, caller: Hashable, row_count: int) -> Request:
    request = request_of(row_count, caller=caller)
    assert queue.add(request, ignore, queue.clock.now_s) is None
    return request


def batches_until(queue: Queue, request: Request) -> int:
    """Take batches until ``request`` is in one; return how many those were."""
    for count in range(1, 1000):
        if any(part.request is request for part in queue.take_batch()[0]):
            return count
    raise AssertionError("never taken")


def sizes_by_caller(batch: Sequence[RequestSlice[Request]]) -> dict[Hashable, int]:
    sizes: Counter[Hashable] = Counter()
    for part in batch:
        sizes[part.request.caller] += len(part.rows)
    return dict(sizes)


@pytest.mark.parametrize(
    ("queue_type", "expected"), [(Queue, 1), (FirstCome, 512)], ids=["fair", "first come, first served"]
)
def test_one_row_goes_with_the_next_batch_whatever_others_have_queued(
    queue_type: type[Queue], expected: int
) -> None:
    queue = queue_type(max_batch_size=32, max_rows=10**6)
    for caller in ("a", "b"):
        put(queue, caller, 8192)
    queue.take_batch()
    small = put(queue, "c", 1)
    assert batches_until(queue, small) == expected


def test_one_row_passes_many_requests_of_a_full_batch() -> None:
    queue = Queue(max_batch_size=32, max_rows=10**6)
    for caller in range(20):
        put(queue, caller, 32)
    assert batches_until(queue, put(queue, "late", 1)) == 1


def test_one_row_passes_thousands_of_one_other_caller() -> None:
    queue = Queue(max_batch_size=32, max_rows=10**6)
    for _ in range(5000):
        put(queue, "a", 1)
    assert batches_until(queue, put(queue, "b", 1)) == 1


def test_one_row_passes_a_large_request_of_its_own_connection() -> None:
    """A proxy's connection carries the requests of many people."""
    queue = Queue(max_batch_size=32, max_rows=10**6)
    put(queue, "proxy", 8192)
    queue.take_batch()
    assert batches_until(queue, put(queue, "proxy", 1)) == 1


def test_large_requests_get_every_other_batch_from_a_flood_of_single_rows() -> None:
    queue = Queue(max_batch_size=4, max_rows=10**6)
    for caller in range(100):
        put(queue, caller, 1)
    put(queue, "large", 40)
    shares = [sizes_by_caller(queue.take_batch()[0]).get("large", 0) for _ in range(8)]
    assert shares == [0, 4, 0, 4, 0, 4, 0, 4]


def test_large_requests_take_turns_by_rows() -> None:
    """One caller's two rows at a time get no less than another's thousands at once."""
    queue = Queue(max_batch_size=4, max_rows=10**6)
    put(queue, "large", 400)
    for _ in range(200):
        put(queue, "pairs", 2)
    given = Counter[Any]()
    for _ in range(50):
        given.update(sizes_by_caller(queue.take_batch()[0]))
        assert abs(given["large"] - given["pairs"]) <= 4


def test_one_row_is_accepted_by_a_queue_that_a_large_request_fills() -> None:
    queue = Queue(max_batch_size=4, max_rows=16, max_bytes=16)
    put(queue, "a", 16)
    assert isinstance(queue.put(2)[0], ResourceExhaustedError), "others are refused"
    assert queue.put(1) == [None]
    assert isinstance(queue.put(1)[0], ResourceExhaustedError), "and it is an eighth of the limit at most"
    assert queue.row_count == 17


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 6), st.sampled_from([1, 1, 1, 2, 3, 4, 7, 8, 9, 30])),
        st.tuples(st.just("flood"), st.integers(0, 6), st.integers(1, 9)),
        st.tuples(st.just("cancel"), st.integers(0, 60), st.none()),
        st.tuples(st.just("wait"), st.integers(1, 5), st.none()),
        st.tuples(st.just("take"), st.none(), st.none()),
    ),
    max_size=60,
)


class Witness:
    """Watches a queue, and checks after each batch what holds for every schedule."""

    def __init__(self, queue: Queue, max_batch_size: int) -> None:
        self.queue, self.max_batch_size = queue, max_batch_size
        self.accepted: list[Request] = []
        self.left: dict[int, list[int]] = {}  # rows of each request, in the order in which they left
        self.begun: list[Request] = []
        self.batches_left: dict[int, int] = {}  # of single rows at the head of their line
        self.passed_over = 0

    def line(self, request: Request) -> tuple[Hashable, bool]:
        return (request.caller, len(request.rows) > self.max_batch_size)

    def heads(self) -> list[RequestSlice[Request]]:
        heads: dict[tuple[Hashable, bool], RequestSlice[Request]] = {}
        for part in self.queue:
            heads.setdefault(self.line(part.request), part)
        return list(heads.values())

    def add(self, caller: int, row_count: int, deadline_s: float = math.inf) -> None:
        request = request_of(row_count, deadline_s, caller)
        if self.queue.add(request, ignore, self.queue.clock.now_s) is not None:
            return
        self.accepted.append(request)
        heads = self.heads()
        if row_count == 1 and any(head.request is request for head in heads):
            rivals = sum(len(head.rows) == 1 for head in heads)
            self.batches_left[id(request)] = 2 * math.ceil(rivals / self.max_batch_size)

    def take(self) -> None:
        waited = sum(len(part.rows) for part in self.queue if not self.is_dead(part.request))
        has_others = any(len(head.rows) > 1 for head in self.heads() if not self.is_dead(head.request))
        batch, dropped = self.queue.take_batch()
        rows = sum(len(part.rows) for part in batch)
        assert rows == min(waited, self.max_batch_size), "a batch is as full as what waits allows"
        assert not any(self.is_dead(part.request) for part in batch)
        self.begun += [part.request for part in batch if part.start == 0]
        for part in [*(part for part, _ in dropped), *batch]:
            places = range(part.start, part.start + len(part.rows))
            self.left.setdefault(id(part.request), []).extend(places)
            self.batches_left.pop(id(part.request), None)
        for request in self.batches_left:
            self.batches_left[request] -= 1
            assert self.batches_left[request] > 0, "a single row waited for more than it must"
        served_others = any(len(part.rows) > 1 or len(part.request.rows) > 1 for part in batch)
        self.passed_over = 0 if served_others or not has_others else self.passed_over + 1
        assert self.passed_over < 2, "larger requests get every other batch"

    def is_dead(self, request: Request) -> bool:
        return request.cancelled or request.deadline_s <= self.queue.clock.now_s

    def check_end(self) -> None:
        for request in self.accepted:
            assert self.left[id(request)] == [*range(len(request.rows))], "each row leaves once, in order"
        for caller in range(7):
            for is_large in (False, True):
                line = (caller, is_large)
                begun = [request for request in self.begun if self.line(request) == line]
                assert begun == [request for request in self.accepted if request in begun], "order is kept"


@given(
    steps=steps,
    max_batch_size=st.integers(1, 8),
    max_rows=st.sampled_from([7, 60, 10**6]),
    max_bytes=st.sampled_from([9, 10**6]),
    max_delay_s=st.sampled_from([0.0, 2.0]),
)
@example(
    steps=[("flood", 0, 9), ("add", 1, 30), ("flood", 2, 9), ("take", 0, 0), ("take", 0, 0), ("take", 0, 0)],
    max_batch_size=1,
    max_rows=10**6,
    max_bytes=10**6,
    max_delay_s=0.0,
)
def test_any_schedule_keeps_turns_order_and_bounds(
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
    witness = Witness(queue, max_batch_size)
    largest = 0
    for action, number, argument in steps:
        if action == "add":
            witness.add(number, argument)
        elif action == "flood":
            for _ in range(argument):
                witness.add(number, 1, deadline_s=queue.clock.now_s + 9)
        elif action == "cancel" and witness.accepted:
            witness.accepted[number % len(witness.accepted)].cancelled = True
        elif action == "wait":
            queue.clock.now_s += number
        elif action == "take":
            witness.take()
        waiting = [*queue]
        largest = max([largest, *(len(part.rows) for part in waiting)])
        assert queue.row_count == queue.byte_count == sum(len(part.rows) for part in waiting)
        assert queue.row_count <= max(largest, min(max_rows, max_bytes)) + min(max_rows, max_bytes) / 8
        due_in_s = queue.due_in_s(is_idle=False)
        assert due_in_s is None if not waiting else due_in_s is not None and 0 <= due_in_s <= max_delay_s
    while queue.row_count:
        witness.take()
    witness.check_end()
