"""Threads of a batcher's instances: as many as there is work for, none for a model without requests."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from foldserve.serving.batching.batcher import DynamicBatcher
from foldserve.serving.batching.request import Outcome, Request
from tests.support.repository_changes import eventually

if TYPE_CHECKING:
    import pytest
    from numpy.typing import NDArray


def request_of(value: int) -> Request:
    return Request(rows=np.array([[value]], np.uint8))


def thread_names(start: str) -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith(start))


def test_threads_start_with_requests_and_end_when_idle() -> None:
    """Two requests of each wave are inside the model at once, or neither comes out again."""
    inside = threading.Barrier(2)

    def execute(rows: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        if rows[0, 0]:
            inside.wait(60)
        return [rows]

    batcher: DynamicBatcher[Request] = DynamicBatcher(
        execute, max_batch_size=1, max_queue_rows=9, max_queue_bytes=99, idle_s=0.01
    )
    batcher.start(1, overflow_count=1, name="idle model")
    assert thread_names("idle model") == []
    for wave in range(3):
        answered: list[Outcome] = []
        for value in (0, 1, 1):
            batcher.submit([request_of(value)], lambda _, outcome, to=answered: to.append(outcome))
        eventually(lambda to=answered: len(to) == 3, f"wave {wave} is answered")
        assert all(isinstance(outcome, tuple) for outcome in answered)
        eventually(lambda: not thread_names("idle model"), "the threads end")
    batcher.close(grace_s=60)


def test_callers_run_their_requests_if_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    batcher: DynamicBatcher[Request] = DynamicBatcher(
        lambda rows: [rows], max_batch_size=4, max_queue_rows=9, max_queue_bytes=99
    )
    monkeypatch.setattr(threading.Thread, "start", refuse)
    batcher.start(2, overflow_count=1)
    outcomes: list[Outcome] = []
    batcher.submit([request_of(1)], lambda _, outcome: outcomes.append(outcome))
    assert [type(outcome) for outcome in outcomes] == [tuple]
    batcher.close(grace_s=5)
    assert batcher.waiting() == (0, 0)
