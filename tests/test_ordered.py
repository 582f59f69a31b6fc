"""Work in threads: results in order, few pieces ahead, errors in their place."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from foldserve.ordered import in_chunks, run_in_order

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_results_come_in_the_order_of_the_pieces() -> None:
    """Every first of two pieces waits for the second, so they end in another order."""
    ended = [threading.Event() for _ in range(40)]

    def work(piece: int) -> int:
        if piece % 2 == 0:
            assert ended[piece + 1].wait(60)
        ended[piece].set()
        return piece

    assert list(run_in_order(range(40), work, 2)) == list(range(40))


def test_few_pieces_are_taken_ahead() -> None:
    taken: list[int] = []

    def pieces() -> Iterator[int]:
        for piece in range(1000):
            taken.append(piece)
            yield piece

    results = run_in_order(pieces(), str, 2)
    for place in range(50):
        assert next(results) == str(place)
        assert len(taken) <= place + 5
    results.close()  # type: ignore[attr-defined]
    assert len(taken) < 60


def test_errors_are_raised_where_the_result_would_come() -> None:
    results = run_in_order([1, 1, 0, 1], lambda piece: 1 // piece, 2)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)

    def pieces() -> Iterator[int]:
        yield from range(3)
        raise OSError("gone")

    results = run_in_order(pieces(), str, 4)
    assert [next(results) for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(OSError, match="gone"):
        next(results)


def test_chunks_have_the_size_asked_for() -> None:
    assert list(in_chunks(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(in_chunks([], 3)) == []

    def items() -> Iterator[int]:
        yield from range(4)
        raise OSError("gone")

    chunks = in_chunks(items(), 3)
    assert [next(chunks), next(chunks)] == [[0, 1, 2], [3]]
    with pytest.raises(OSError, match="gone"):
        next(chunks)
