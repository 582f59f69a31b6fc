"""Defines what callers hand to a batcher, and the slices of it that wait in the queue."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from foldserve.serving.errors import CancelledError, DeadlineExceededError

Arrays: TypeAlias = tuple[NDArray[Any], ...]
Outcome: TypeAlias = Arrays | Exception


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """One caller's rows. Transports extend it with what they need to answer.

    ``rows`` [n, ...] with n >= 1, the same trailing shape and type for all requests of one batcher.
    ``deadline_s`` is on the batcher's clock. Set ``cancelled`` from any thread: the request is then dropped
    if it has not run yet. ``caller`` tells apart who asks: callers take turns while more waits than one batch
    holds. The batcher sets the times at which the request was queued, its first execution began and its last
    one ended.
    """

    rows: NDArray[Any]
    deadline_s: float = math.inf
    cancelled: bool = False
    caller: Hashable = None
    queued_s: float = field(default=0.0, init=False)
    started_s: float = field(default=0.0, init=False)
    finished_s: float = field(default=0.0, init=False)
    # The batcher's bookkeeping: rows without an outcome, and the outputs of a request that was cut, by their
    # start.
    pending_rows: int = field(default=0, init=False, repr=False)
    slice_outputs: dict[int, Arrays] | None = field(default=None, init=False, repr=False)


R = TypeVar("R", bound=Request)
OnDone: TypeAlias = Callable[[R, Outcome], None]


@dataclass(frozen=True, slots=True)
class Execution:
    """Describes one execution that succeeded, for the statistics; times in seconds."""

    waits_s: Sequence[float]  # time in the queue of each request that began with this execution
    row_count: int
    compute_s: float


@dataclass(slots=True, eq=False)
class RequestSlice(Generic[R]):
    """Consecutive rows of one request, starting at row ``start``: a whole request, or a part of one."""

    request: R
    on_done: OnDone[R]
    start: int
    rows: NDArray[Any]


def cut(part: RequestSlice[R], row_count: int) -> RequestSlice[R]:
    """Remove the first ``row_count`` rows of ``part``, which has more, and return them. Copies none."""
    assert 0 < row_count < len(part.rows)
    request = part.request
    if request.slice_outputs is None:
        request.slice_outputs = {}
    front = RequestSlice(request, part.on_done, part.start, part.rows[:row_count])
    part.start += row_count
    part.rows = part.rows[row_count:]
    return front


def record_outcome(part: RequestSlice[Any], outcome: Outcome) -> bool:
    """Store a slice's outcome; return True once per request, when its outcome is complete.

    The first slice that fails completes its request. Slices of one request may end on several threads: the
    caller holds the batcher's lock.
    """
    request = part.request
    if not request.pending_rows:
        return False
    if isinstance(outcome, Exception):
        request.pending_rows = 0
        return True
    request.pending_rows -= len(part.rows)
    if request.slice_outputs is not None:
        request.slice_outputs[part.start] = outcome
    return not request.pending_rows


def concatenate_slices(request: Request, outcome: Outcome) -> Outcome:
    """Return the outcome of a whole request; ``outcome`` is that of the slice that completed it."""
    if request.slice_outputs is None or isinstance(outcome, Exception):
        return outcome
    in_order = [request.slice_outputs[start] for start in sorted(request.slice_outputs)]
    return tuple(np.concatenate(outputs) for outputs in zip(*in_order, strict=True))


def drop_reason(request: Request, now_s: float) -> Exception | None:
    """Return why a request need not run any more, or None if its caller still waits.

    The deadline comes first: a caller whose deadline passes also hangs up, and is counted as expired.
    """
    if request.deadline_s <= now_s:
        return DeadlineExceededError("the deadline passed while the request waited in the queue")
    if request.cancelled:
        return CancelledError("the caller cancelled before the model ran")
    return None
