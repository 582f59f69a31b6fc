"""Runs work in threads and yields the results in order, with a bounded number of pieces in flight."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def run_in_order(
    pieces: Iterable[Piece], work: Callable[[Piece], Result], thread_count: int
) -> Iterator[Result]:
    """Yield ``work`` of each piece, in order; pieces are taken as threads come free.

    An exception of ``pieces`` or ``work`` is raised where its result would come; closing the iterator drops
    the pieces that wait.
    """
    waiting: deque[Future[Result]] = deque()
    rest = iter(pieces)
    failure: Exception | None = None
    pool = ThreadPoolExecutor(thread_count, thread_name_prefix="images")
    try:
        while failure is None:
            try:
                waiting.append(pool.submit(work, next(rest)))
            except StopIteration:
                break
            except Exception as error:  # raised once the results before it are out
                failure = error
            # One piece per thread runs and one per thread waits, so that none runs dry while one is slow.
            if len(waiting) >= 2 * thread_count + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_chunks(items: Iterable[Piece], size: int) -> Iterator[list[Piece]]:
    """Yield ``items`` in lists of ``size``; the last, or the one before an exception, may be shorter."""
    chunk: list[Piece] = []
    failure: Exception | None = None
    try:
        for item in items:
            chunk.append(item)
            if len(chunk) == size:
                yield chunk
                chunk = []
    except Exception as error:
        failure = error
    if chunk:
        yield chunk
    if failure is not None:
        raise failure
