"""Frames what the server and its decoding processes send each other.

An order goes over a socket: its head, the pickled `TurnRules`, the length of each image, and the images. So
does the answer: its head and a message. The pixels are in memory that both share, so that the server need not
wake up for each part of them.

Only the server is trusted, so only a decoding process unpickles: what a hostile picture makes of a decoder
must not reach the server. Nor can a decoder take the memory away beneath it.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import socket
import struct
from array import array
from typing import TYPE_CHECKING, Final

import numpy as np

from foldserve.serving.decoding.turn import End, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Sent once, by a process that can decode from now on.
READY: Final = b"R"
# Decoding takes some 4 s of a CPU at most; a process that is silent for longer than this is stuck.
SILENCE_S: Final = 120
_LENGTH: Final = "I"
_ORDER = struct.Struct("=II")  # bytes of the rules, images
_ANSWER = struct.Struct("=III")  # images that were decoded, why no more, bytes of the message
_MAX_MESSAGE_BYTES = 4096


class SharedRows:
    """Memory for pixels that two processes share, by a descriptor; it grows with what is asked of it.

    Args:
        descriptor: of memory that `new` made, perhaps in another process; this closes it.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory: mmap.mmap | None = None

    @classmethod
    def new(cls) -> SharedRows:
        """Return memory that can grow and never shrink; raises OSError if there is none."""
        rows = cls(os.memfd_create("foldserve-pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        try:
            fcntl.fcntl(rows.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        except OSError:
            rows.close()
            raise
        return rows

    def rows(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return the beginning of the memory as uint8 of ``shape``, valid until the next call.

        Raises:
            OSError: there is not as much memory.
        """
        byte_count = math.prod(shape)
        if self._memory is None or len(self._memory) < byte_count:
            if os.fstat(self.descriptor).st_size < byte_count:
                os.ftruncate(self.descriptor, byte_count)
            self._memory = mmap.mmap(self.descriptor, byte_count)
        return np.frombuffer(self._memory, np.uint8, byte_count).reshape(shape)

    def close(self) -> None:
        """Let go of the descriptor; the memory is freed when both processes have let go of it."""
        os.close(self.descriptor)
        self._memory = None


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


def send_answer(end: socket.socket, outcome: Outcome) -> None:
    """Send an outcome; raises ConnectionError if the server is gone."""
    message = outcome.message.encode(errors="replace")[:_MAX_MESSAGE_BYTES]
    end.sendall(_ANSWER.pack(outcome.done_count, outcome.end, len(message)) + message)


def receive_answer(end: socket.socket, image_count: int) -> Outcome:
    """Return the outcome of an order of ``image_count`` images.

    Raises:
        ConnectionError: the process is gone.
        OSError: it is silent for longer than the socket allows.
        ValueError: its answer makes no sense.
    """
    done_count, ended, message_bytes = _ANSWER.unpack(_receive(end, _ANSWER.size))
    if done_count > image_count or message_bytes > _MAX_MESSAGE_BYTES:
        raise ValueError(f"it says {done_count} of {image_count} images, and {message_bytes} bytes of text")
    message = _receive(end, message_bytes).decode(errors="replace") if message_bytes else ""
    return Outcome(done_count, End(ended), message)


def _receive(end: socket.socket, count: int) -> bytes:
    received = end.recv(count, socket.MSG_WAITALL)
    while len(received) < count:  # usually not: the flag waits for all, unless a signal interrupts it
        further = end.recv(count - len(received), socket.MSG_WAITALL)
        if not further:
            raise ConnectionError("it ended")
        received += further
    return received
