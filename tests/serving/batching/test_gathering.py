"""After an execution, a slow model waits a little for the callers that it answered: fuller batches."""

from __future__ import annotations

import numpy as np
import pytest

from foldserve.serving.batching.batcher import DynamicBatcher
from foldserve.serving.batching.request import Request
from tests.support.batcher_bench import Clock


class Slow:
    """A batcher whose executions take ten seconds of its clock; the tests run them one by one."""

    def __init__(self, gather_share: float = 0.05) -> None:
        self.clock = Clock()
        self.answered: list[int] = []
        self.batcher: DynamicBatcher[Request] = DynamicBatcher(
            self._execute,
            max_batch_size=16,
            max_queue_rows=1000,
            max_queue_bytes=10**6,
            gather_share=gather_share,
            clock=self.clock,
        )
        self.batcher._instance_count = 1  # as after start, without its thread

    def _execute(self, rows: np.ndarray) -> list[np.ndarray]:
        self.clock.now_s += 10.0
        return [rows]

    def ask(self, count: int) -> None:
        requests = [Request(rows=np.zeros((1, 1), np.uint8)) for _ in range(count)]
        self.batcher._running_count += 1  # so that the requests wait, as if another execution were under way
        self.batcher.submit(requests, lambda *_: self.answered.append(1))
        self.batcher._running_count -= 1

    def run(self) -> None:
        assert self.due_in_s() == 0
        self.batcher.run_once()

    def due_in_s(self) -> float | None:
        return self.batcher._due_in_s()


@pytest.fixture
def slow() -> Slow:
    """Eight callers were just answered, and eight others wait."""
    slow = Slow()
    slow.ask(8)
    execute = slow.batcher._execute

    def execute_while_others_ask(rows: np.ndarray) -> list[np.ndarray]:
        slow.ask(8)
        return list(execute(rows))

    slow.batcher._execute = execute_while_others_ask
    slow.run()
    slow.batcher._execute = execute
    assert len(slow.answered) == 8
    return slow


def test_those_that_wait_are_run_with_those_that_come_back(slow: Slow) -> None:
    assert slow.due_in_s() == pytest.approx(0.5), "a twentieth of what the execution took"
    slow.ask(7)
    assert slow.due_in_s() != 0
    slow.ask(1)
    slow.run()
    assert len(slow.answered) == 24, "sixteen in one execution"


def test_callers_that_do_not_come_back_are_not_waited_for(slow: Slow) -> None:
    slow.ask(3)
    slow.clock.now_s += 0.5
    slow.run()
    assert len(slow.answered) == 19


def test_full_batch_does_not_wait(slow: Slow) -> None:
    slow.ask(30)
    slow.run()


def test_closing_does_not_wait(slow: Slow) -> None:
    slow.batcher.close(grace_s=0)
    assert slow.due_in_s() is None
    assert len(slow.answered) == 16


def test_lone_caller_does_not_wait() -> None:
    slow = Slow()
    for _ in range(3):
        slow.ask(1)
        slow.run()


def test_without_a_share_nothing_waits() -> None:
    slow = Slow(gather_share=0)
    slow.ask(20)
    slow.run()
    assert slow.due_in_s() == 0
