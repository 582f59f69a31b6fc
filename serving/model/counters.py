"""Counts requests and their durations; metrics are read from copies of these counters.

Prometheus's own counters take a lock and look up labels at each observation. A request is served in some 59
us, so here an observation costs a bisection and two additions; labels are added at scrape time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Upper bounds in seconds, three per decade: from a small network's compute time to longer than callers wait.
DURATION_BOUNDS_S = (
    *(50e-6, 100e-6, 200e-6, 500e-6),
    *(1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 100e-3, 200e-3, 500e-3),
    *(1.0, 2.0, 5.0, 10.0),
)
# Rows per execution.
BATCH_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
# Hashing, reading and replaying: LeNet takes a tenth of a second, a large network on a cold GPU a minute.
LOAD_BOUNDS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0)


class Histogram:
    """Counts values up to and including each bound, and sums them. Not thread-safe."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last one counts values above all bounds
        self.total = 0.0

    @property
    def count(self) -> int:
        """Return the number of values."""
        return sum(self.counts)

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, other: Histogram) -> None:
        """Add the counts of ``other``, which must have the same bounds."""
        assert self.bounds == other.bounds
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


def _durations() -> Histogram:
    return Histogram(DURATION_BOUNDS_S)


def _batches() -> Histogram:
    return Histogram(BATCH_BOUNDS)


@dataclass(slots=True)
class Counters:
    """Counts the requests and executions of one model version.

    ``requests`` are by method and status, as in ("ModelInfer", "OK"). ``queue_s`` is per request; ``total_s``
    too, from arrival to answer, for requests answered OK. ``batch_rows`` and ``compute_s`` are per execution.
    """

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    batch_rows: Histogram = field(default_factory=_batches)
    queue_s: Histogram = field(default_factory=_durations)
    compute_s: Histogram = field(default_factory=_durations)
    total_s: Histogram = field(default_factory=_durations)

    def add(self, other: Counters) -> None:
        """Add the counts of ``other``."""
        self.requests.update(other.requests)
        self.batch_rows.add(other.batch_rows)
        self.queue_s.add(other.queue_s)
        self.compute_s.add(other.compute_s)
        self.total_s.add(other.total_s)
