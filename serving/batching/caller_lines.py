"""Orders waiting requests so that callers take turns. Used while more waits than one batch can hold.

Each caller has one line, first come, first served. Requests larger than a batch stand in a second line of
their caller, so that smaller ones pass them even on the same connection: a proxy's carries many people's
requests. The order of rows in a batch:

1. Lines whose first request has a single row, in turn, one row per turn.
2. The other lines in turn: a turn is over when it has given half as many rows as a batch holds, or none is
   left. A request that does not fit into the batch is cut; the rest of it is next in its line. (With a whole
   batch per turn, a single row would leave all later batches mixed of two large requests, and copied.)

If a batch had no room for the second kind, the next one takes them first. Let q lines begin with a single
row: their requests are in one of the next 2 * ceil(q / max_batch_size) batches, whatever waits in other
lines, and the second kind gets at least every other batch. This is deficit round robin (Shreedhar and
Varghese, 1995) with a quantum of half a batch, and a level above it for single rows.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeAlias

from foldserve.serving.batching.request import R, RequestSlice

if TYPE_CHECKING:
    from collections.abc import Hashable

_Key: TypeAlias = "tuple[Hashable, bool]"


@dataclass(slots=True, eq=False)
class _Line(Generic[R]):
    """The requests of one caller with their numbers, and the rows that it gave in its present turn."""

    key: _Key
    waiting: deque[tuple[int, RequestSlice[R]]] = field(default_factory=deque)
    given_rows: int = 0

    @property
    def has_single_row_first(self) -> bool:
        return len(self.waiting[0][1].rows) == 1


class CallerLines(Generic[R]):
    """Holds requests in one line per caller, and tells which is next.

    Args:
        max_batch_size: most rows in one batch.

    Attributes:
        request_count: requests that wait.
    """

    def __init__(self, max_batch_size: int) -> None:
        self.request_count = 0
        self._max_batch_size = max_batch_size
        self._lines: dict[_Key, _Line[R]] = {}
        self._singles: deque[_Line[R]] = deque()  # lines whose first request has a single row
        self._others: deque[_Line[R]] = deque()
        self._others_first = False
        self._others_served = False  # in the present batch
        self._numbers = itertools.count()

    def add(self, part: RequestSlice[R]) -> None:
        """Put a request at the end of its caller's line."""
        # By the size that the caller sent, whatever is left of it.
        key = (part.request.caller, len(part.request.rows) > self._max_batch_size)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(key)
            (self._singles if len(part.rows) == 1 else self._others).append(line)
        line.waiting.append((next(self._numbers), part))
        self.request_count += 1

    def first(self) -> RequestSlice[R] | None:
        """Return what is next, None if nothing waits."""
        turns = self._turns()
        return turns[0].waiting[0][1] if turns else None

    def give(self, row_count: int) -> None:
        """Note that the batch took ``row_count`` rows of `first`, of which a part is left."""
        turns = self._turns()
        self._count(turns, row_count)
        self._pass_turn(turns)

    def remove_first(self, row_count: int) -> None:
        """Remove `first`, of which the batch took the last ``row_count`` rows; 0 if it is dropped."""
        turns = self._turns()
        turns[0].waiting.popleft()
        self.request_count -= 1
        self._count(turns, row_count)
        self._pass_turn(turns)

    def end_batch(self) -> None:
        """Note that the batch is complete."""
        self._others_first = bool(self._others) and not self._others_served
        self._others_served = False

    def clear(self) -> list[RequestSlice[R]]:
        """Remove all requests and return them in the order in which they came."""
        parts = self.in_order()
        self._lines.clear()
        self._singles.clear()
        self._others.clear()
        self.request_count = 0
        return parts

    def in_order(self) -> list[RequestSlice[R]]:
        """Return the requests in the order in which they came."""
        waiting = sorted(itertools.chain.from_iterable(line.waiting for line in self._lines.values()))
        return [part for _, part in waiting]

    def _turns(self) -> deque[_Line[R]]:
        if self._others_first:
            return self._others or self._singles
        return self._singles or self._others

    def _count(self, turns: deque[_Line[R]], row_count: int) -> None:
        if turns is self._others and row_count:
            self._others_served = True
            turns[0].given_rows += row_count

    def _pass_turn(self, turns: deque[_Line[R]]) -> None:
        """Move the line that was just served to where it waits for its next turn."""
        line = turns[0]
        if not line.waiting:
            turns.popleft()
            del self._lines[line.key]
        elif line.has_single_row_first:
            turns.popleft()
            line.given_rows = 0
            self._singles.append(line)
        elif turns is self._singles:
            turns.popleft()
            self._others.append(line)
        elif 2 * line.given_rows >= self._max_batch_size:
            line.given_rows = 0
            turns.rotate(-1)
