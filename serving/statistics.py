"""What is counted for one model version, as Triton defines it: requests, inferences (rows), executions."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.pb import open_inference_pb2 as pb

if TYPE_CHECKING:
    from serving.batch_requests import Execution, Request


@dataclass(slots=True)
class _Duration:
    count: int = 0
    total_s: float = 0.0

    def add(self, count: int, total_s: float) -> None:
        self.count += count
        self.total_s += total_s

    def to_message(self) -> pb.StatisticDuration:
        return pb.StatisticDuration(count=self.count, ns=max(0, round(self.total_s * 1e9)))


class Statistics:
    """Counters of one version; every method may be called from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Lock()
        self._row_count = 0
        self._last_ms = 0
        self._success, self._fail = _Duration(), _Duration()
        self._queue, self._compute = _Duration(), _Duration()
        self._by_size: defaultdict[int, _Duration] = defaultdict(_Duration)

    def count_execution(self, execution: Execution) -> None:
        """Count an execution that succeeded."""
        with self._changed:
            self._row_count += execution.row_count
            self._last_ms = time.time_ns() // 1_000_000
            self._queue.add(execution.request_count, execution.queue_s)
            self._compute.add(execution.request_count, execution.compute_s * execution.request_count)
            self._by_size[execution.row_count].add(1, execution.compute_s)

    def count_success(self, request: Request) -> None:
        """Count a request that is answered."""
        with self._changed:
            self._success.add(1, request.finished_s - request.queued_s)

    def count_failure(self) -> None:
        """Count a request that failed, was refused, expired or was cancelled."""
        with self._changed:
            self._fail.add(1, 0.0)

    def to_message(self, name: str, version: str) -> pb.ModelStatistics:
        """Return the protocol's message."""
        with self._changed:
            return pb.ModelStatistics(
                name=name,
                version=version,
                last_inference=self._last_ms,
                inference_count=self._row_count,
                execution_count=sum(duration.count for duration in self._by_size.values()),
                inference_stats=pb.InferStatistics(
                    success=self._success.to_message(),
                    fail=self._fail.to_message(),
                    queue=self._queue.to_message(),
                    compute_infer=self._compute.to_message(),
                ),
                batch_stats=[
                    pb.InferBatchStatistics(batch_size=size, compute_infer=duration.to_message())
                    for size, duration in sorted(self._by_size.items())
                ],
            )
