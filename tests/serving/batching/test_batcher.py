"""The batcher's promises, on the real class, driven step by step without threads or sleeps."""

from __future__ import annotations

import math
import threading
from collections import deque
from threading import current_thread
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from foldserve.serving.batching.batcher import DynamicBatcher
from foldserve.serving.batching.request import Execution, Outcome, Request
from foldserve.serving.errors import (
    CancelledError,
    DeadlineExceededError,
    ResourceExhaustedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest
    from numpy.typing import NDArray

POISON = 255  # a row that makes any execution holding it fail


class Model:
    """Doubles each row; fails where a row is POISON; records what it ran."""

    def __init__(self) -> None:
        self.executions: list[NDArray[np.uint8]] = []

    def __call__(self, rows: NDArray[np.uint8]) -> list[NDArray[np.int64]]:
        self.executions.append(rows)
        if (rows == POISON).any():
            raise RuntimeError("poisoned")
        return [rows.astype(np.int64) * 2, rows.astype(np.int64) + 1]


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """A batcher with its model, clock and the outcomes it delivered, by request, in order."""

    def __init__(
        self,
        max_batch_size: int = 4,
        max_queue_rows: int = 100,
        max_queue_bytes: int = 10**6,
        max_queue_delay_s: float = 0.0,
    ) -> None:
        self.model, self.clock = Model(), Clock()
        self.outcomes: list[tuple[Request, Outcome]] = []
        self.counted: list[Execution] = []
        self.batcher: DynamicBatcher[Request] = DynamicBatcher(
            self.model,
            max_batch_size=max_batch_size,
            max_queue_rows=max_queue_rows,
            max_queue_bytes=max_queue_bytes,
            max_queue_delay_s=max_queue_delay_s,
            on_execution=self.counted.append,
            clock=self.clock,
        )

    def submit(
        self, *row_values: Sequence[int], deadline_s: float = math.inf, run_inline: bool = False
    ) -> list[Request]:
        requests = [
            Request(rows=np.array(values, np.uint8)[:, None], deadline_s=deadline_s) for values in row_values
        ]
        self.batcher.submit(
            requests,
            lambda request, outcome: self.outcomes.append((request, outcome)),
            run_inline=run_inline,
        )
        return requests

    def run(self) -> None:
        while self.batcher.run_once():
            pass

    def outcome(self, request: Request) -> Outcome:
        found = [outcome for other, outcome in self.outcomes if other is request]
        assert len(found) == 1
        return found[0]

    def batch_sizes(self) -> list[int]:
        return [len(rows) for rows in self.model.executions]


def test_waiting_requests_share_one_execution_and_get_their_own_rows() -> None:
    bench = Bench()
    first, second = bench.submit([1], [2, 3])
    bench.run()
    assert bench.batch_sizes() == [3]
    outcome = bench.outcome(first)
    assert isinstance(outcome, tuple)
    assert outcome[0].tolist() == [[2]]
    outcome = bench.outcome(second)
    assert isinstance(outcome, tuple)
    assert outcome[0].tolist() == [[4], [6]]
    assert outcome[1].tolist() == [[3], [4]]


def test_request_larger_than_a_batch_is_cut_and_rejoined_in_order() -> None:
    bench = Bench(max_batch_size=4)
    (request,) = bench.submit(list(range(10)))
    bench.run()
    assert bench.batch_sizes() == [4, 4, 2]
    outcome = bench.outcome(request)
    assert isinstance(outcome, tuple)
    assert outcome[0].ravel().tolist() == [2 * value for value in range(10)]


def test_last_piece_of_a_large_request_shares_its_batch_with_the_next() -> None:
    bench = Bench(max_batch_size=4)
    bench.submit(list(range(6)), [7, 8])
    bench.run()
    assert bench.batch_sizes() == [4, 4]


def test_full_queue_is_refused_at_once_and_says_how_full() -> None:
    bench = Bench(max_queue_rows=3)
    _, refused = bench.submit([1, 2], [3, 4])
    outcome = bench.outcome(refused)
    assert isinstance(outcome, ResourceExhaustedError)
    assert "2 images" in str(outcome)
    assert "at most 3" in str(outcome)


def test_queue_is_bounded_in_bytes_too() -> None:
    bench = Bench(max_queue_bytes=3)
    _, refused = bench.submit([1, 2], [3, 4])
    assert isinstance(bench.outcome(refused), ResourceExhaustedError)


def test_queue_takes_exactly_what_may_wait() -> None:
    for limits in ({"max_queue_rows": 4}, {"max_queue_bytes": 4}):
        bench = Bench(**limits)
        _, last, refused = bench.submit([1, 2], [3, 4], [5])
        assert isinstance(bench.outcome(refused), ResourceExhaustedError)
        bench.run()
        assert isinstance(bench.outcome(last), tuple)


def test_bytes_of_what_ran_or_was_dropped_no_longer_count() -> None:
    bench = Bench(max_queue_bytes=4)
    for _ in range(3):
        first, _ = bench.submit([1, 2], [3, 4])
        first.cancelled = True
        bench.run()
    assert not any(isinstance(outcome, ResourceExhaustedError) for _, outcome in bench.outcomes)
    assert (bench.batcher._queue.row_count, bench.batcher._queue.byte_count) == (0, 0)


def test_request_of_exactly_a_batch_is_not_cut() -> None:
    bench = Bench(max_batch_size=4)
    (request,) = bench.submit([1, 2, 3, 4])
    assert request.slice_outputs is None
    bench.run()
    outcome = bench.outcome(request)
    assert isinstance(outcome, tuple)
    assert outcome[0].ravel().tolist() == [2, 4, 6, 8]


def test_what_does_not_fit_a_full_batch_is_not_even_looked_at() -> None:
    """An expired request behind a full batch is answered with the next one, not before its turn."""
    bench = Bench(max_batch_size=2)
    bench.submit([1, 2])
    (late,) = bench.submit([3], deadline_s=1.0)
    bench.clock.now_s = 2.0
    bench.batcher.run_once()
    assert [request for request, _ in bench.outcomes] != [late]
    assert len(bench.outcomes) == 1
    bench.run()
    assert isinstance(bench.outcome(late), DeadlineExceededError)


def test_rows_alone_in_their_batch_are_not_copied() -> None:
    bench = Bench()
    (request,) = bench.submit([1, 2])
    bench.run()
    assert bench.model.executions[0] is request.rows


def test_empty_queue_takes_a_request_of_any_size() -> None:
    bench = Bench(max_queue_rows=3)
    (request,) = bench.submit(list(range(9)))
    bench.run()
    assert isinstance(bench.outcome(request), tuple)


def test_room_in_the_queue_comes_back() -> None:
    bench = Bench(max_queue_rows=3)
    bench.submit([1, 2, 3])
    bench.run()
    bench.submit([1])
    (request,) = bench.submit([1, 2])
    bench.run()
    assert isinstance(bench.outcome(request), tuple)


def test_expired_request_never_reaches_the_model() -> None:
    bench = Bench()
    (late,) = bench.submit([1], deadline_s=1.0)
    (other,) = bench.submit([2])
    bench.clock.now_s = 1.0
    bench.run()
    assert isinstance(bench.outcome(late), DeadlineExceededError)
    assert isinstance(bench.outcome(other), tuple)
    assert [rows.tolist() for rows in bench.model.executions] == [[[2]]]


def test_cancelled_request_never_reaches_the_model_and_frees_its_neighbour() -> None:
    bench = Bench()
    gone, other = bench.submit([1], [2])
    gone.cancelled = True
    bench.run()
    assert isinstance(bench.outcome(gone), CancelledError)
    assert isinstance(bench.outcome(other), tuple)
    assert [rows.tolist() for rows in bench.model.executions] == [[[2]]]


def test_failing_batch_is_retried_so_that_only_the_guilty_fails() -> None:
    bench = Bench()
    first, guilty, last = bench.submit([1], [POISON], [3])
    bench.run()
    assert isinstance(bench.outcome(first), tuple)
    assert isinstance(bench.outcome(guilty), RuntimeError)
    assert isinstance(bench.outcome(last), tuple)


def test_model_that_loses_rows_fails_the_request() -> None:
    outcomes: list[Outcome] = []
    batcher: DynamicBatcher[Request] = DynamicBatcher(
        lambda rows: [rows[:-1]], max_batch_size=4, max_queue_rows=9, max_queue_bytes=9
    )
    batcher.submit([Request(rows=np.zeros((2, 1)))], lambda _, outcome: outcomes.append(outcome))
    batcher.run_once()
    assert [str(outcome) for outcome in outcomes] == ["the model gave [1] rows for 2"]


def test_raising_receiver_does_not_harm_the_next_one(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()

    def explode(request: Request, outcome: Outcome) -> None:
        raise ValueError("receiver's fault")

    bench.batcher.submit([Request(rows=np.zeros((1, 1), np.uint8))], explode)
    (other,) = bench.submit([2])
    bench.run()
    assert isinstance(bench.outcome(other), tuple)
    assert "delivering an outcome failed" in caplog.text


def test_closing_answers_what_waits_and_refuses_what_comes() -> None:
    bench = Bench()
    (waiting,) = bench.submit([1])
    bench.batcher.close(grace_s=0)
    (late,) = bench.submit([2])
    assert isinstance(bench.outcome(waiting), UnavailableError)
    assert isinstance(bench.outcome(late), UnavailableError)


def test_closing_waits_for_a_lent_thread() -> None:
    """What a lender runs is in no thread of the batcher's, and still ends before close returns."""
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
    lender = threading.Thread(
        target=lambda: batcher.submit([request], lambda _, outcome: outcomes.append(outcome), run_inline=True)
    )
    lender.start()
    assert running.wait(30)
    threading.Timer(0.2, go_on.set).start()
    batcher.close(grace_s=20)
    assert len(outcomes) == 1, "answered when close returned"
    lender.join(5)


def test_nothing_is_answered_twice_after_closing() -> None:
    bench = Bench(max_batch_size=2)
    (waiting,) = bench.submit([1, 2, 3])
    bench.batcher.close(grace_s=0)
    assert isinstance(bench.outcome(waiting), UnavailableError)
    bench.run()
    assert bench.model.executions == [], "what was given up does not run any more"
    assert isinstance(bench.outcome(waiting), UnavailableError)


def test_a_lent_thread_runs_what_it_brings() -> None:
    bench = Bench()
    bench.batcher.start(1)
    threads: list[str] = []
    request = Request(rows=np.array([[1]], np.uint8))
    bench.batcher.submit([request], lambda *_: threads.append(current_thread().name), run_inline=True)
    assert threads == [current_thread().name], "answered before submit returned, by this thread"
    assert bench.batcher._running_count == 0, "and the instance is given back, once"
    bench.batcher.close(grace_s=5)


def test_a_lent_thread_does_not_add_an_instance() -> None:
    """While the only instance runs, what a lender brings waits for it: never two executions at once."""
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


def test_what_a_lent_thread_leaves_is_run_by_an_instance() -> None:
    bench = Bench(max_batch_size=2)
    bench.batcher.start(1)
    requests = [Request(rows=np.array([[value]], np.uint8)) for value in range(9)]
    bench.batcher.submit(
        requests, lambda request, outcome: bench.outcomes.append((request, outcome)), run_inline=True
    )
    bench.batcher.close(grace_s=5)
    assert [request for request, _ in bench.outcomes] == requests


def test_a_spare_instance_takes_full_batches_only() -> None:
    bench = Bench(max_batch_size=4)
    bench.batcher._instance_count, bench.batcher._overflow_count = (
        1,
        1,
    )  # as after start, without their threads
    bench.batcher._running_count = 1
    bench.submit([1], [2, 3])
    assert bench.batcher._due_in_s() is None, "three rows may find company while the instance is busy"
    bench.submit([4])
    assert bench.batcher._due_in_s() == 0
    bench.batcher._running_count = 2
    assert bench.batcher._due_in_s() is None, "both are busy"
    bench.batcher._running_count = 0
    assert bench.batcher._due_in_s() == 0


def test_full_batches_run_at_the_same_time_where_an_instance_is_spare() -> None:
    """Beside a lent thread too: two batches are inside the model at once, or neither comes out again."""
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


def test_a_spare_instance_ends_with_the_others() -> None:
    """Closed while a batch runs and more waits, which is not for it: it must not sleep through the end."""
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


def test_a_delay_is_for_company_only() -> None:
    """A lone request is due at once; two wait for a third, from the first's arrival, unless they fill up."""
    bench = Bench(max_batch_size=4, max_queue_delay_s=1.0)
    bench.batcher._instance_count = 1  # as after start, without its thread
    assert bench.batcher._due_in_s() is None
    bench.submit([1])
    assert bench.batcher._due_in_s() == 0
    bench.clock.now_s = 0.25
    bench.submit([2])
    assert bench.batcher._due_in_s() == 0.75
    bench.clock.now_s = 1.5
    assert bench.batcher._due_in_s() == 0
    bench.clock.now_s = 0.5
    bench.submit([3, 4])
    assert bench.batcher._due_in_s() == 0, "the batch is full"


def test_a_delay_is_not_for_one_that_is_alone_while_others_run() -> None:
    """With something in flight on another instance the only one in the queue waits for company too."""
    bench = Bench(max_batch_size=4, max_queue_delay_s=1.0)
    bench.batcher._instance_count = 2  # as after start, without its threads
    bench.batcher._running_count = 1
    bench.submit([1])
    assert bench.batcher._due_in_s() == 1.0
    bench.batcher._running_count = 2
    assert bench.batcher._due_in_s() is None, "no instance is free"


def test_no_delay_and_no_company_are_due_at_once() -> None:
    bench = Bench(max_batch_size=4, max_queue_delay_s=0.0)
    bench.batcher._instance_count = 2
    bench.batcher._running_count = 1
    bench.submit([1], [2])
    bench.clock.now_s = -1.0  # a clock that steps back must not make a delay of nothing into one of a second
    assert bench.batcher._due_in_s() == 0


def test_closing_ends_the_delay() -> None:
    bench = Bench(max_batch_size=4, max_queue_delay_s=30.0)
    bench.batcher._instance_count = 1
    bench.submit([1], [2])
    assert bench.batcher._due_in_s() == 30.0
    bench.batcher._queue.close()
    assert bench.batcher._due_in_s() == 0


def test_a_lone_caller_is_not_delayed_though_a_delay_is_set() -> None:
    bench = Bench(max_queue_delay_s=30.0)
    bench.batcher.start(1)
    answered = threading.Event()
    bench.batcher.submit([Request(rows=np.array([[1]], np.uint8))], lambda *_: answered.set())
    assert answered.wait(30)
    bench.batcher.close(grace_s=5)


def test_executions_are_counted_with_their_requests_rows_and_times() -> None:
    bench = Bench(max_batch_size=4)
    bench.submit([1], [2, 3])
    bench.clock.now_s = 2.0
    bench.submit([POISON])
    (large,) = bench.submit(list(range(6)))
    bench.run()
    # The first batch fails with the poisoned row in it and is run again request by request.
    assert [(len(count.waits_s), count.row_count) for count in bench.counted] == [
        (1, 1),
        (1, 2),
        (1, 4),
        (0, 2),
    ]
    assert [sum(count.waits_s) for count in bench.counted] == [2.0, 2.0, 0.0, 0.0]
    assert (large.queued_s, large.started_s, large.finished_s) == (2.0, 2.0, 2.0)


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


steps = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["submit", "submit and lend"]),
            st.lists(st.lists(st.sampled_from([*range(9), POISON]), min_size=1, max_size=11)),
        ),
        st.tuples(st.just("submit until"), st.integers(0, 20)),
        st.tuples(st.just("run"), st.none()),
        st.tuples(st.just("wait"), st.integers(1, 10)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
    ),
    max_size=25,
)


@given(steps=steps, max_batch_size=st.integers(1, 6), max_queue_rows=st.integers(1, 30))
def test_any_schedule_gives_each_caller_one_outcome_of_its_own_rows(
    steps: list[tuple[str, object]], max_batch_size: int, max_queue_rows: int
) -> None:
    bench = Bench(max_batch_size=max_batch_size, max_queue_rows=max_queue_rows)
    bench.batcher._instance_count = 1  # as after start, without its thread: this one is lent
    requests: list[Request] = []
    for action, argument in steps:
        if action in ("submit", "submit and lend"):
            requests += bench.submit(*argument, run_inline=action != "submit")  # type: ignore[misc]
        elif action == "submit until":
            requests += bench.submit([5], deadline_s=float(argument))  # type: ignore[arg-type]
        elif action == "run":
            bench.batcher.run_once()
        elif action == "wait":
            bench.clock.now_s += float(argument)  # type: ignore[arg-type]
        elif requests:
            requests[int(argument) % len(requests)].cancelled = True  # type: ignore[call-overload]
    bench.run()
    assert len(bench.outcomes) == len(requests)
    assert all(size <= max_batch_size for size in bench.batch_sizes())
    for request in requests:
        outcome = bench.outcome(request)
        poisoned = bool((request.rows == POISON).any())
        if isinstance(outcome, tuple):
            assert not poisoned
            assert (outcome[0] == request.rows.astype(np.int64) * 2).all()
            assert (outcome[1] == request.rows.astype(np.int64) + 1).all()
        elif isinstance(outcome, RuntimeError):
            assert poisoned
        elif isinstance(outcome, DeadlineExceededError):
            assert request.deadline_s <= bench.clock.now_s
        elif isinstance(outcome, CancelledError):
            assert request.cancelled
        else:
            assert isinstance(outcome, ResourceExhaustedError)
    served = [request for request, outcome in bench.outcomes if isinstance(outcome, tuple)]
    assert served == [request for request in requests if request in served], "order is kept"


@given(
    plans=st.lists(
        st.lists(
            st.tuples(
                st.lists(st.sampled_from([*range(9), POISON]), min_size=1, max_size=9),
                st.sampled_from(["wait", "cancel", "expire", "lend"]),
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
            batcher.submit([request], lambda *outcome: outcomes.append(outcome), run_inline=how == "lend")
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
