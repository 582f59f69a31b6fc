"""What a batcher's callers hand in, and what becomes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    if it has not run yet. The batcher sets the times at which the request was queued, its first execution
    began and its last one ended.
    """

    rows: NDArray[Any]
    deadline_s: float = math.inf
    cancelled: bool = False
    queued_s: float = field(default=0.0, init=False)
    started_s: float = field(default=0.0, init=False)
    finished_s: float = field(default=0.0, init=False)
    # The batcher's bookkeeping: pieces without an outcome, and the outcomes of the others by their start.
    pending_slices: int = field(default=0, init=False, repr=False)
    slice_outputs: dict[int, Arrays] | None = field(default=None, init=False, repr=False)


R = TypeVar("R", bound=Request)
OnDone: TypeAlias = Callable[[R, Outcome], None]


@dataclass(frozen=True, slots=True)
class Execution:
    """One execution that succeeded, for whoever counts: what ran in it, and for how long in seconds."""

    waits_s: Sequence[float]  # in the queue, of each request that began with this execution
    row_count: int
    compute_s: float

    @property
    def request_count(self) -> int:
        """Requests that began with this execution."""
        return len(self.waits_s)

    @property
    def queue_s(self) -> float:
        """What those requests waited, together."""
        return sum(self.waits_s)


@dataclass(slots=True, eq=False)
class RequestSlice(Generic[R]):
    """At most ``max_batch_size`` consecutive rows of one request, starting at ``start``."""

    request: R
    on_done: OnDone[R]
    start: int
    rows: NDArray[Any]


def concatenate_slices(request: Request, outcome: Outcome) -> Outcome:
    """Return the outcome of a whole request, of whose pieces the last one had ``outcome``."""
    if request.slice_outputs is None or isinstance(outcome, Exception):
        return outcome
    in_order = [request.slice_outputs[start] for start in sorted(request.slice_outputs)]
    return tuple(np.concatenate(slice_outputs) for slice_outputs in zip(*in_order, strict=True))


def drop_reason(request: Request, now_s: float) -> Exception | None:
    """Return why nobody waits for a request any more; None where somebody does.

    The deadline first: a caller whose deadline passes hangs up too, and is counted as expired.
    """
    if request.deadline_s <= now_s:
        return DeadlineExceededError("the deadline passed while the request waited in the queue")
    if request.cancelled:
        return CancelledError("the caller cancelled before the model ran")
    return None
