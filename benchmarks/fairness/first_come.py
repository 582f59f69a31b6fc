"""The queue to compare with: first come, first served, whoever asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foldserve.serving.batching.queue import RequestQueue
from foldserve.serving.batching.request import Outcome, R, RequestSlice, cut, drop_reason

if TYPE_CHECKING:
    from typing import TypeAlias

    Dropped: TypeAlias = list[tuple[RequestSlice[R], Outcome]]


class FirstComeQueue(RequestQueue[R]):
    """Takes requests in the order in which they came, and cuts the last one to fill the batch."""

    def _take_in_turn(self, batch: list[RequestSlice[R]], dropped: Dropped[R]) -> None:
        room, now_s = self._max_batch_size, self._clock()
        while room and self._arrived:
            part = self._arrived[0]
            reason = drop_reason(part.request, now_s)
            is_cut = reason is None and len(part.rows) > room
            part = cut(part, room) if is_cut else self._arrived.popleft()
            self._forget_rows(part)
            if reason is not None:
                dropped.append((part, reason))
            elif part.request.pending_rows:
                batch.append(part)
                room -= len(part.rows)
