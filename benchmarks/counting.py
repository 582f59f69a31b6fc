"""`python -m benchmarks.counting`: CPU time of counting a request, beside prometheus_client's metrics.

Both count the same for each batch: requests by method and status, rows, executions, batch size, and the times
in the queue, in the model and in total. The figure is the CPU time of one thread, the smallest of the rounds.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram

from foldserve.serving.batching.request import Execution
from foldserve.serving.model.counters import BATCH_BOUNDS, DURATION_BOUNDS_S
from foldserve.serving.model.statistics import Statistics
from foldserve.serving.services.requests import TensorRequest

if TYPE_CHECKING:
    from collections.abc import Callable

_BATCH_SIZES = (1, 10, 32)
_ROUNDS = 15
_REQUESTS_A_ROUND = 20_000


def ours() -> Callable[[list[TensorRequest], Execution], None]:
    """Return a function that counts a batch as the server does."""
    statistics = Statistics()

    def count(calls: list[TensorRequest], execution: Execution) -> None:
        statistics.count_execution(execution)
        for call in calls:
            statistics.count_success(call.method, call.received_s)

    return count


def prometheus_client() -> Callable[[list[TensorRequest], Execution], None]:
    """Return a function that counts a batch with prometheus_client, its labels looked up in advance."""
    registry = CollectorRegistry()
    names = ("tiny", "1")
    requests = Counter("requests", "", ("model", "version", "method", "code"), registry=registry)
    ok = requests.labels(*names, "ModelInfer", "OK")
    rows, executions = (
        Counter(name, "", ("model", "version"), registry=registry).labels(*names)
        for name in ("rows", "executions")
    )
    sizes, queue, compute, total = (
        Histogram(name, "", ("model", "version"), buckets=bounds, registry=registry).labels(*names)
        for name, bounds in (
            ("sizes", BATCH_BOUNDS),
            ("queue", DURATION_BOUNDS_S),
            ("compute", DURATION_BOUNDS_S),
            ("total", DURATION_BOUNDS_S),
        )
    )

    def count(calls: list[TensorRequest], execution: Execution) -> None:
        rows.inc(execution.row_count)
        executions.inc()
        sizes.observe(execution.row_count)
        compute.observe(execution.compute_s)
        for wait_s in execution.waits_s:
            queue.observe(wait_s)
        for call in calls:
            ok.inc()
            total.observe(time.monotonic() - call.received_s)

    return count


def microseconds_a_request(count: Callable[[list[TensorRequest], Execution], None], batch_size: int) -> float:
    """Return the CPU time per request in microseconds, the smallest of the rounds."""
    calls = [TensorRequest(message=None) for _ in range(batch_size)]
    execution = Execution([0.0003] * batch_size, batch_size, 0.0005)
    batches = _REQUESTS_A_ROUND // batch_size
    rounds_s = []
    for _ in range(_ROUNDS):
        for call in calls:
            call.received_s = time.monotonic()
        started_s = time.thread_time()
        for _ in range(batches):
            count(calls, execution)
        rounds_s.append(time.thread_time() - started_s)
    return min(rounds_s) / (batches * batch_size) * 1e6


def main() -> int:
    """Print the table and return 0."""
    print("us a request    ours   prometheus_client")
    for batch_size in _BATCH_SIZES:
        mine, theirs = (microseconds_a_request(make(), batch_size) for make in (ours, prometheus_client))
        print(f"batches of {batch_size:2}  {mine:6.2f}   {theirs:6.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
