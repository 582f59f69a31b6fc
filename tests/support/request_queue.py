"""A request queue without threads, at a time that tests set."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from foldserve.serving.batching.queue import RequestQueue
from foldserve.serving.batching.request import Request
from tests.support.batcher_bench import Clock

if TYPE_CHECKING:
    from collections.abc import Hashable

    from foldserve.serving.batching.request import Outcome


def request_of(row_count: int, deadline_s: float = math.inf, caller: Hashable = None) -> Request:
    return Request(rows=np.zeros((row_count, 1), np.uint8), deadline_s=deadline_s, caller=caller)


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
