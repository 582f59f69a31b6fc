"""Frames what the server and its decoding processes send each other over a socket.

An order is its head, the pickled `TurnRules`, the length of each image, and the images. An answer is its
head, a message, and the pixels. Only the server is trusted, so only a decoding process unpickles: what a
hostile picture makes of a decoder must not reach the server.
"""

from __future__ import annotations

import socket
import struct
from array import array
from typing import TYPE_CHECKING, Final

from foldserve.serving.decoding.turn import End, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

# Sent once, by a process that can decode from now on.
READY: Final = b"R"
_LENGTH: Final = "I"
_ORDER = struct.Struct("=II")  # bytes of the rules, images
_ANSWER = struct.Struct("=III")  # images that were decoded, why no more, bytes of the message
_MAX_MESSAGE_BYTES = 4096


def send_order(end: socket.socket, pickled_rules: bytes, images: Sequence[bytes]) -> None:
    """Send an order; raises OSError if the process is gone, or does not read."""
    lengths = array(_LENGTH, map(len, images)).tobytes()
    head = b"".join((_ORDER.pack(len(pickled_rules), len(images)), pickled_rules, lengths))
    if len(images) == 1:  # perhaps megabytes, which are not copied
        end.sendall(head)
        end.sendall(images[0])
    else:
        end.sendall(b"".join((head, *images)))


def receive_order(end: socket.socket) -> tuple[bytes, list[bytes]]:
    """Return the pickled rules and the images; raises ConnectionError if the server is gone."""
    rules_bytes, image_count = _ORDER.unpack(_receive(end, _ORDER.size))
    pickled_rules = _receive(end, rules_bytes)
    lengths = array(_LENGTH)
    lengths.frombytes(_receive(end, image_count * lengths.itemsize))
    return pickled_rules, [_receive(end, length) for length in lengths]


def send_answer(end: socket.socket, outcome: Outcome, rows: NDArray[np.uint8]) -> None:
    """Send an outcome and the ``rows`` that were decoded; raises ConnectionError if the server is gone."""
    message = outcome.message.encode(errors="replace")[:_MAX_MESSAGE_BYTES]
    end.sendall(_ANSWER.pack(outcome.done_count, outcome.end, len(message)) + message)
    end.sendall(rows.data)


def receive_answer(end: socket.socket, rows: NDArray[np.uint8]) -> Outcome:
    """Return the outcome of an order for ``rows`` [N, C, H, W], which receive the pixels.

    Raises:
        OSError: the process is gone, or is silent for longer than the socket allows.
        ValueError: its answer makes no sense.
    """
    done_count, ended, message_bytes = _ANSWER.unpack(_receive(end, _ANSWER.size))
    if done_count > len(rows) or message_bytes > _MAX_MESSAGE_BYTES:
        raise ValueError(f"it says {done_count} of {len(rows)} images, and {message_bytes} bytes of text")
    message = _receive(end, message_bytes).decode(errors="replace")
    outcome = Outcome(done_count, End(ended), message)
    pixels = rows.data.cast("B")[: rows.nbytes // len(rows) * done_count]
    if end.recv_into(pixels, flags=socket.MSG_WAITALL) < len(pixels):
        raise ConnectionError("it ended, or was silent for too long")
    return outcome


def _receive(end: socket.socket, count: int) -> bytes:
    received = end.recv(count, socket.MSG_WAITALL)
    if len(received) < count:
        raise ConnectionError("it ended, or was silent for too long")
    return received
