"""Histograms and the counts that outlive their versions."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from foldserve.serving.batching.request import Execution
from foldserve.serving.model.counters import DURATION_BOUNDS_S, Histogram
from foldserve.serving.model.loader import LoadOutcome
from foldserve.serving.model.statistics import Statistics
from foldserve.serving.observability.counter_history import CounterHistory, LoadCounts

NUMBERS = st.lists(st.floats(0, 100) | st.sampled_from(DURATION_BOUNDS_S))


@given(NUMBERS, NUMBERS)
def test_each_bound_counts_what_is_not_above_it(first: list[float], second: list[float]) -> None:
    """By the definition of a Prometheus histogram, for values on a bound and for two added up as well."""
    histogram, other = Histogram(DURATION_BOUNDS_S), Histogram(DURATION_BOUNDS_S)
    for value in first:
        histogram.observe(value)
    for value in second:
        other.observe(value)
    histogram.add(other)
    values = [*first, *second]
    for index, bound in enumerate((*DURATION_BOUNDS_S, math.inf)):
        assert sum(histogram.counts[: index + 1]) == sum(value <= bound for value in values)
    assert histogram.count == len(values)
    assert math.isclose(histogram.total, sum(values), abs_tol=1e-9)


def version(number: int, statistics: Statistics | None = None) -> Any:
    """What `CounterHistory` looks at of a served model."""
    return SimpleNamespace(
        name="tiny", version_text=str(number), statistics=statistics or answered(request_count=1)
    )


def answered(request_count: int) -> Statistics:
    statistics = Statistics()
    statistics.count_execution(Execution([0.001] * request_count, request_count, 0.002))
    for _ in range(request_count):
        statistics.count_failure("ModelInfer", "CANCELLED")
    return statistics


def test_counts_of_a_version_go_on_when_it_is_loaded_anew() -> None:
    counts = CounterHistory()
    loads = [answered(request_count) for request_count in (1, 2, 3, 4, 5)]
    for statistics in loads:
        counts.note([version(1, statistics)])
        counts.note([version(1, statistics)])  # noted again and again while it serves
    loads[-2].count_failure("ModelInfer", "CANCELLED")  # the one before still finishes its last request
    (tally,) = counts.counters().values()
    assert tally.requests["ModelInfer", "CANCELLED"] == 1 + 2 + 3 + 4 + 5 + 1
    assert tally.batch_rows.total == 15
    assert tally.queue_s.count == 15


def test_counts_of_versions_that_serve_no_more_are_kept_and_bounded() -> None:
    counts = CounterHistory()
    oldest = version(1)
    for number in range(2, 202):
        counts.note([oldest, version(number)])
    kept = [int(number) for _, number in counts.counters()]
    assert sorted(kept) == [1, *range(201 - 64, 202)], (
        "what serves is never forgotten, of the rest the last 64"
    )


def test_loads_are_counted_by_outcome() -> None:
    loads = LoadCounts()
    for seconds, refusal in ((0.1, None), (0.2, "bad"), (0.3, None)):
        loads.count(LoadOutcome("tiny", 1, seconds, refusal))
    assert loads.by_outcome() == {("tiny", "ready"): 2, ("tiny", "refused"): 1}
    assert math.isclose(loads.seconds()["tiny"].total, 0.6)
