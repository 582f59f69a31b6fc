"""The batcher's promises, on the real class, driven step by step without threads or sleeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from foldserve.serving.batching.batcher import DynamicBatcher
from foldserve.serving.batching.request import Outcome, Request
from foldserve.serving.errors import (
    CancelledError,
    DeadlineExceededError,
    ResourceExhaustedError,
    UnavailableError,
)
from tests.support.batcher_bench import POISON, Bench

if TYPE_CHECKING:
    import pytest


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


def test_request_larger_than_a_batch_is_sliced_and_rejoined_in_order() -> None:
    bench = Bench(max_batch_size=4)
    (request,) = bench.submit(list(range(10)))
    bench.run()
    assert bench.batch_sizes() == [4, 4, 2]
    outcome = bench.outcome(request)
    assert isinstance(outcome, tuple)
    assert outcome[0].ravel().tolist() == [2 * value for value in range(10)]


def test_last_slice_of_a_large_request_shares_its_batch_with_the_next() -> None:
    bench = Bench(max_batch_size=4)
    bench.submit(list(range(6)), [7, 8])
    bench.run()
    assert bench.batch_sizes() == [4, 4]


def test_rows_alone_in_their_batch_are_not_copied() -> None:
    bench = Bench()
    (request,) = bench.submit([1, 2])
    bench.run()
    assert bench.model.executions[0] is request.rows


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


def test_failing_batch_is_retried_so_that_only_the_poisoned_request_fails() -> None:
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


def test_closing_answers_waiting_requests_and_refuses_new_ones() -> None:
    bench = Bench()
    (waiting,) = bench.submit([1])
    bench.batcher.close(grace_s=0)
    (late,) = bench.submit([2])
    assert isinstance(bench.outcome(waiting), UnavailableError)
    assert isinstance(bench.outcome(late), UnavailableError)


def test_nothing_is_answered_twice_after_closing() -> None:
    bench = Bench(max_batch_size=2)
    (waiting,) = bench.submit([1, 2, 3])
    bench.batcher.close(grace_s=0)
    assert isinstance(bench.outcome(waiting), UnavailableError)
    bench.run()
    assert bench.model.executions == [], "what was given up does not run any more"
    assert isinstance(bench.outcome(waiting), UnavailableError)


def test_an_overflow_instance_takes_full_batches_only() -> None:
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


def test_a_lone_request_is_delayed_while_another_instance_runs() -> None:
    """The only request in the queue waits for a fuller batch too, if something else is in flight."""
    bench = Bench(max_batch_size=4, max_queue_delay_s=1.0)
    bench.batcher._instance_count = 2  # as after start, without its threads
    bench.batcher._running_count = 1
    bench.submit([1])
    assert bench.batcher._due_in_s() == 1.0
    bench.batcher._running_count = 2
    assert bench.batcher._due_in_s() is None, "no instance is free"


def test_executions_are_counted_with_their_requests_rows_and_times() -> None:
    bench = Bench(max_batch_size=4)
    bench.submit([1], [2, 3])
    bench.clock.now_s = 2.0
    bench.submit([POISON])
    bench.run()
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


steps = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["submit", "submit inline"]),
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
    bench.batcher._instance_count = 1  # as after start, without its thread: this one runs inline
    requests: list[Request] = []
    for action, argument in steps:
        if action in ("submit", "submit inline"):
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
    asked = [request for request in requests if request in served]
    # Requests that are larger than a batch give way to others; sorting keeps the order of either kind.
    assert sorted(served, key=lambda request: len(request.rows) > max_batch_size) == sorted(
        asked, key=lambda request: len(request.rows) > max_batch_size
    ), "order is kept"
