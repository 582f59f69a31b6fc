"""A batcher with a model that doubles rows and a clock that tests set."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from foldserve.serving.batching.batcher import DynamicBatcher
from foldserve.serving.batching.request import Execution, Outcome, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

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
