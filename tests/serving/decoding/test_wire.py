"""Orders and answers arrive as they were sent, whatever is in them; what is not an answer is an error."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.serving.decoding.turn import End, Outcome
from foldserve.serving.decoding.wire import SharedRows, receive_answer, receive_order, send_answer, send_order

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@given(rules=st.binary(max_size=300), images=st.lists(st.binary(max_size=2000), min_size=1, max_size=40))
def test_orders_arrive_as_they_were_sent(rules: bytes, images: list[bytes]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=send_order, args=(ours, rules, images))
        sender.start()
        assert receive_order(theirs) == (rules, images)
        sender.join()


def test_an_image_larger_than_any_buffer_arrives(pair: tuple[socket.socket, socket.socket]) -> None:
    image = np.random.default_rng(1).bytes(20 * 1024 * 1024)
    sender = threading.Thread(target=send_order, args=(pair[0], b"rules", [image]))
    sender.start()
    assert receive_order(pair[1]) == (b"rules", [image])
    sender.join()


@given(
    done=st.integers(0, 5),
    end=st.sampled_from(End),
    message=st.text(st.characters(exclude_categories=["Cs"]), max_size=1000),
)
def test_answers_arrive_as_they_were_sent(done: int, end: End, message: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_answer(theirs, Outcome(done, end, message))
        assert receive_answer(ours, 5) == Outcome(done, end, message)


def test_a_long_message_is_cut(pair: tuple[socket.socket, socket.socket]) -> None:
    send_answer(pair[1], Outcome(0, End.REFUSED, "é" * 10_000))
    assert receive_answer(pair[0], 1).message.startswith("é" * 2000)


@pytest.mark.parametrize(
    "answer",
    [
        struct.pack("=III", 3, 0, 0),  # more images than were sent
        struct.pack("=III", 0, 7, 0),  # an unknown end
        struct.pack("=III", 0, 2, 2**31) + b"text",  # text without end
        struct.pack("=III", 2, 0, 8) + b"text",  # too little text
        b"\1\0",
        b"",
    ],
)
def test_what_is_not_an_answer_is_an_error(answer: bytes, pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].sendall(answer)
    pair[1].close()
    with pytest.raises((OSError, ValueError)):
        receive_answer(pair[0], 2)


def test_a_closed_order_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].sendall(b"\1\0\0")
    pair[0].close()
    with pytest.raises(ConnectionError):
        receive_order(pair[1])


@pytest.mark.skipif(sys.platform != "linux", reason="memory that processes share is Linux's")
def test_rows_are_shared_and_grow() -> None:
    ours = SharedRows.new()
    theirs = SharedRows(os.dup(ours.descriptor))
    with contextlib.closing(ours), contextlib.closing(theirs):
        for shape in [(1, 3, 4, 5), (40, 3, 64, 64), (2, 1, 7, 7), (1, 3, 1000, 1001)]:
            theirs_rows, ours_rows = theirs.rows(shape), ours.rows(shape)
            theirs_rows[...] = np.random.default_rng(len(shape)).integers(0, 256, shape, np.uint8)
            assert np.array_equal(ours_rows, theirs_rows)
        with pytest.raises(PermissionError):  # whoever reads it would be killed (SIGBUS)
            os.ftruncate(theirs.descriptor, 10)
