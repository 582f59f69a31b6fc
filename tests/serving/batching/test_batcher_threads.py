"""The batcher's promises with real threads: its own instances' and callers that run inline."""

from __future__ import annotations

import threading
from collections import deque
from threading import current_thread
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from foldserve.serving.batching.batcher import DynamicBatcher
from foldserve.serving.batching.request import Outcome, Request
from foldserve.serving.errors import (
    CancelledError,
    DeadlineExceededError,
    ResourceExhaustedError,
)
from tests.support.batcher_bench import POISON, Bench, Model

if TYPE_CHECKING:
    from numpy.typing import NDArray


def test_closing_waits_for_an_inline_run() -> None:
    """An inline run is on none of the batcher's threads, and still ends before close returns."""
    running, go_on = threading.Event(), threading.Event()

    def execute(rows: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        running.set()
        go_on.wait(30)
        return [rows]

    batcher: DynamicBatcher[Request] = DynamicBatcher(
        execute, max_batch_size=4, max_queue_rows=9, max_queue_bytes=99
    )
    batcher.start(1)
    outcomes: list[Outcome] = []
    request = Request(rows=np.zeros((1, 1), np.uint8))
    caller = threading.Thread(
        target=lambda: batcher.submit([request], lambda _, outcome: outcomes.append(outcome), run_inline=True)
    )
    caller.start()
    assert running.wait(30)
    threading.Timer(0.2, go_on.set).start()
    batcher.close(grace_s=20)
    assert len(outcomes) == 1, "answered when close returned"
    caller.join(5)


def test_an_inline_run_answers_before_submit_returns() -> None:
    bench = Bench()
    bench.batcher.start(1)
    threads: list[str] = []
    request = Request(rows=np.array([[1]], np.uint8))
    bench.batcher.submit([request], lambda *_: threads.append(current_thread().name), run_inline=True)
    assert threads == [current_thread().name], "answered before submit returned, by this thread"
    assert bench.batcher._running_count == 0, "and the instance is given back, once"
    bench.batcher.close(grace_s=5)


def test_an_inline_run_does_not_add_an_instance() -> None:
    """While the only instance runs, an inline request waits for it: never two executions at once."""
    running, go_on = threading.Event(), threading.Event()
    at_once: list[int] = [0, 0]  # now, most

    def execute(rows: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        at_once[0] += 1
        at_once[1] = max(at_once)
        running.set()
        go_on.wait(30)
        at_once[0] -= 1
        return [rows]

    batcher: DynamicBatcher[Request] = DynamicBatcher(
        execute, max_batch_size=1, max_queue_rows=9, max_queue_bytes=99
    )
    batcher.start(1)
    done: list[str] = []
    rows = np.zeros((1, 1), np.uint8)
    batcher.submit([Request(rows=rows)], lambda *_: done.append("first"))
    running.wait(30)
    batcher.submit([Request(rows=rows)], lambda *_: done.append("second"), run_inline=True)
    assert done == []
    go_on.set()
    batcher.close(grace_s=5)
    assert done == ["first", "second"]
    assert at_once[1] == 1


def test_requests_left_by_an_inline_run_are_run_by_an_instance() -> None:
    bench = Bench(max_batch_size=2)
    bench.batcher.start(1)
    requests = [Request(rows=np.array([[value]], np.uint8)) for value in range(9)]
    bench.batcher.submit(
        requests, lambda request, outcome: bench.outcomes.append((request, outcome)), run_inline=True
    )
    bench.batcher.close(grace_s=5)
    assert [request for request, _ in bench.outcomes] == requests


def test_full_batches_run_at_the_same_time_with_an_overflow_instance() -> None:
    """Beside an inline run too: two batches are inside the model at once, or neither comes out again."""
    both = threading.Barrier(2)

    def execute(rows: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        both.wait(timeout=30)
        return [rows]

    for run_inline in (True, False):
        outcomes: list[Outcome] = []
        batcher: DynamicBatcher[Request] = DynamicBatcher(
            execute, max_batch_size=2, max_queue_rows=100, max_queue_bytes=10**6
        )
        batcher.start(1, overflow_count=1)
        requests = [Request(rows=np.array([[value], [value]], np.uint8)) for value in range(4)]
        batcher.submit(requests, lambda _, outcome, to=outcomes: to.append(outcome), run_inline=run_inline)
        batcher.close(grace_s=20)
        assert [type(outcome) for outcome in outcomes] == [tuple] * 4


def test_an_overflow_instance_ends_with_the_others() -> None:
    """Closed while a batch runs and a small one waits: the overflow thread must not sleep through the end."""
    entered, go_on = threading.Event(), threading.Event()

    def execute(rows: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        entered.set()
        assert go_on.wait(30)
        return [rows]

    batcher: DynamicBatcher[Request] = DynamicBatcher(
        execute, max_batch_size=9, max_queue_rows=100, max_queue_bytes=10**6
    )
    batcher.start(1, overflow_count=1)
    outcomes: list[Outcome] = []
    batcher.submit([Request(rows=np.array([[1]], np.uint8))], lambda _, outcome: outcomes.append(outcome))
    assert entered.wait(30)
    batcher.submit([Request(rows=np.array([[2]], np.uint8))], lambda _, outcome: outcomes.append(outcome))
    closing = threading.Thread(target=batcher.close, args=(60,))
    closing.start()
    while not batcher._queue.is_closed:
        pass
    go_on.set()
    closing.join(20)
    assert not closing.is_alive()
    assert len(outcomes) == 2


def test_a_lone_request_is_not_delayed() -> None:
    bench = Bench(max_queue_delay_s=30.0)
    bench.batcher.start(1)
    answered = threading.Event()
    bench.batcher.submit([Request(rows=np.array([[1]], np.uint8))], lambda *_: answered.set())
    assert answered.wait(30)
    bench.batcher.close(grace_s=5)


def test_threads_finish_everything_before_close_returns() -> None:
    """The same promises with real threads: 200 requests on 3 instances, each answered once, none lost."""
    bench = Bench(max_queue_rows=10_000)
    bench.batcher.start(3, overflow_count=2)
    requests = [request for value in range(200) for request in bench.submit([value % 250] * (1 + value % 7))]
    bench.batcher.close(grace_s=20)
    for request in requests:
        outcome = bench.outcome(request)
        assert isinstance(outcome, tuple)
        assert (outcome[0] == request.rows.astype(np.int64) * 2).all()
    assert not any(thread.name.startswith("batcher#") for thread in threading.enumerate())


@given(
    plans=st.lists(
        st.lists(
            st.tuples(
                st.lists(st.sampled_from([*range(9), POISON]), min_size=1, max_size=9),
                st.sampled_from(["wait", "cancel", "expire", "inline"]),
            ),
            min_size=1,
            max_size=12,
        ),
        min_size=2,
        max_size=4,
    ),
    max_batch_size=st.integers(1, 6),
    max_queue_rows=st.integers(1, 40),
    instance_count=st.integers(1, 3),
    overflow_count=st.integers(0, 2),
    max_queue_delay_s=st.sampled_from([0.0, 0.001]),
)
@settings(max_examples=60)
def test_any_schedule_on_threads_gives_each_caller_one_outcome_of_its_own_rows(
    *,
    plans: list[list[tuple[list[int], str]]],
    max_batch_size: int,
    max_queue_rows: int,
    instance_count: int,
    overflow_count: int,
    max_queue_delay_s: float,
) -> None:
    """Several callers at once, each with a plan, against real instances; closed as soon as all have asked."""
    model, outcomes, at_once, most = Model(), deque[tuple[Request, Outcome]](), [0], [0]
    changed = threading.Lock()

    def execute(rows: NDArray[np.uint8]) -> list[NDArray[np.int64]]:
        with changed:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        try:
            return model(rows)
        finally:
            with changed:
                at_once[0] -= 1

    batcher: DynamicBatcher[Request] = DynamicBatcher(
        execute,
        max_batch_size=max_batch_size,
        max_queue_rows=max_queue_rows,
        max_queue_bytes=10**6,
        max_queue_delay_s=max_queue_delay_s,
    )
    batcher.start(instance_count, overflow_count)
    asked: list[list[Request]] = [[] for _ in plans]

    def ask(index: int) -> None:
        for values, how in plans[index]:
            request = Request(rows=np.array(values, np.uint8)[:, None])
            if how == "expire":
                request.deadline_s = 0.0  # of the monotonic clock: long past
            asked[index].append(request)
            batcher.submit([request], lambda *outcome: outcomes.append(outcome), run_inline=how == "inline")
            if how == "cancel":
                request.cancelled = True

    callers = [threading.Thread(target=ask, args=(index,)) for index in range(len(plans))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    batcher.close(grace_s=30)
    by_request = {id(request): outcome for request, outcome in outcomes}
    requests = [request for each in asked for request in each]
    assert len(outcomes) == len(by_request) == len(requests)
    assert most[0] <= instance_count + overflow_count
    assert all(len(rows) <= max_batch_size for rows in model.executions)
    for request in requests:
        outcome = by_request[id(request)]
        if isinstance(outcome, tuple):
            assert not (request.rows == POISON).any()
            assert (outcome[0] == request.rows.astype(np.int64) * 2).all()
        elif isinstance(outcome, RuntimeError):
            assert (request.rows == POISON).any()
        elif isinstance(outcome, DeadlineExceededError):
            assert request.deadline_s == 0.0
        elif isinstance(outcome, CancelledError):
            assert request.cancelled
        else:
            assert isinstance(outcome, ResourceExhaustedError)
    assert (batcher._queue.row_count, batcher._queue.byte_count, batcher._running_count) == (0, 0, 0)
