"""Keeps the statistics of one model version: requests, inferences (rows) and executions as in Triton."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foldserve.serving.model.counters import DURATION_BOUNDS_S, Counters
from foldserve.serving.pb import open_inference_pb2 as pb

if TYPE_CHECKING:
    from foldserve.serving.batching.request import Execution


@dataclass(slots=True)
class _Duration:
    count: int = 0
    total_s: float = 0.0

    def add(self, count: int, total_s: float) -> None:
        self.count += count
        self.total_s += total_s

    def to_message(self) -> pb.StatisticDuration:
        return pb.StatisticDuration(count=self.count, ns=max(0, round(self.total_s * 1e9)))

    def to_parts(self) -> dict[str, pb.StatisticDuration]:
        """Return the three parts of a computation: the second is this one, the others took no time.

        Triton's perf_analyzer ends itself if their counts differ.
        """
        no_time = _Duration(self.count).to_message()
        return {"compute_input": no_time, "compute_infer": self.to_message(), "compute_output": no_time}


class Statistics:
    """Counts for one version; all methods may be called from any thread.

    `count_execution` and `count_success` run for every request, so they update histograms inline instead of
    calling their methods.
    """

    def __init__(self) -> None:
        self._changed = threading.Lock()
        self._counters = Counters()
        self._ok_by_method: defaultdict[str, int] = defaultdict(int)
        self._last_ms = 0
        self._compute = _Duration()  # per request: an execution counts once for each of its requests
        self._by_size: defaultdict[int, _Duration] = defaultdict(_Duration)

    def count_execution(self, execution: Execution) -> None:
        """Count a successful execution."""
        queue, compute_s = self._counters.queue_s, execution.compute_s
        request_count = len(execution.waits_s)
        with self._changed:
            self._last_ms = time.time_ns() // 1_000_000
            for wait_s in execution.waits_s:
                queue.counts[bisect_left(DURATION_BOUNDS_S, wait_s)] += 1
                queue.total += wait_s
            self._counters.compute_s.observe(compute_s)
            self._counters.batch_rows.observe(execution.row_count)
            self._compute.add(request_count, compute_s * request_count)
            self._by_size[execution.row_count].add(1, compute_s)

    def count_success(self, method: str, received_s: float) -> None:
        """Count a successful request of ``method`` received at ``received_s`` (time.monotonic)."""
        total = self._counters.total_s
        took_s = time.monotonic() - received_s
        with self._changed:
            self._ok_by_method[method] += 1
            total.counts[bisect_left(DURATION_BOUNDS_S, took_s)] += 1
            total.total += took_s

    def count_failure(self, method: str, status: str) -> None:
        """Count a request that failed, was refused, expired or was cancelled."""
        with self._changed:
            self._counters.requests[method, status] += 1

    def counters(self) -> Counters:
        """Return a copy of the counters."""
        copy = Counters()
        with self._changed:
            copy.add(self._counters)
            for method, count in self._ok_by_method.items():
                copy.requests[method, "OK"] += count
        return copy

    def to_message(self, name: str, version: str) -> pb.ModelStatistics:
        """Return the statistics as the protocol's message."""
        counters = self.counters()
        succeeded, queue = counters.total_s, counters.queue_s
        failed_count = counters.requests.total() - succeeded.count
        with self._changed:
            return pb.ModelStatistics(
                name=name,
                version=version,
                last_inference=self._last_ms,
                inference_count=round(counters.batch_rows.total),
                execution_count=counters.batch_rows.count,
                inference_stats=pb.InferStatistics(
                    success=_Duration(succeeded.count, succeeded.total).to_message(),
                    fail=_Duration(failed_count).to_message(),
                    queue=_Duration(queue.count, queue.total).to_message(),
                    **self._compute.to_parts(),
                ),
                batch_stats=[
                    pb.InferBatchStatistics(batch_size=size, **duration.to_parts())
                    for size, duration in sorted(self._by_size.items())
                ],
            )
