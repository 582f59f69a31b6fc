"""Runs as a process that has the decoder loaded, and forks one that decodes for each socket it is sent.

A fork is ready at once and shares what neither changes, so that each decoding process takes few MiB.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from foldserve.c_allocator import keep_freed_memory
from foldserve.parent_death import end_with
from foldserve.serving.decoding.turn import End, Outcome, decode_turn
from foldserve.serving.decoding.wire import READY, SILENCE_S, SharedRows, receive_order, send_answer

if TYPE_CHECKING:
    from foldserve.serving.decoding.turn import TurnRules

# Decoding keeps a CPU for many milliseconds, and an answer to pixels needs a fraction of one: with decoders
# of the same priority, the median of such answers doubled while pictures were decoded on all CPUs.
_NICER = 10
# To the kernel, where memory runs out: end this process before any other. The server starts another.
_WORTH_LEAST = "1000"
# Pictures are decoded in memory that was used before: the page faults of fresh memory took a quarter of the
# time of 500x375 pixels.
_KEPT_BYTES = 32 * 1024 * 1024
# Of a traceback: some 2 kB, where a message holds twice as much.
_CALLS = 12
# SIGALRM then ends it; the server has let go of it before.
_STUCK_S = SILENCE_S + 10


def main(control_number: int) -> None:
    """Fork a process for each socket and memory sent over the socket ``control_number``, until it is closed.

    Call it in a process of one thread.
    """
    # Service managers and terminals send these to all processes; a server that drains still has pictures.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets forks that have ended
    _give_way()
    keep_freed_memory(block_bytes=_KEPT_BYTES, kept_bytes=_KEPT_BYTES)
    own_id = os.getpid()
    with socket.socket(fileno=control_number) as control:
        while numbers := socket.recv_fds(control, 1, 2)[1]:
            end_number, memory_number = numbers
            with (
                socket.socket(fileno=end_number) as end,
                contextlib.closing(SharedRows(memory_number)) as memory,
            ):
                if _fork() == 0:
                    control.close()
                    end_with(own_id)
                    _serve(end, memory)
                    return


def _serve(end: socket.socket, memory: SharedRows) -> None:
    """Decode what is sent over ``end`` into ``memory``, until the server closes it."""
    end.sendall(READY)
    with contextlib.suppress(ConnectionError):
        while True:
            pickled_rules, images = receive_order(end)
            signal.alarm(_STUCK_S)
            rules = _read_rules(pickled_rules)
            try:
                outcome = decode_turn(images, rules, memory.rows((len(images), *rules.spec.shape)))
            except Exception as error:  # the server logs it, and this process goes on
                outcome = Outcome(0, End.FAULT, "".join(traceback.format_exception(error, limit=-_CALLS)))
            signal.alarm(0)
            send_answer(end, outcome)
            del images  # perhaps megabytes, until the next order


@functools.lru_cache(maxsize=16)
def _read_rules(pickled_rules: bytes) -> TurnRules:
    rules: TurnRules = pickle.loads(pickled_rules)  # noqa: S301  # the server pickled them
    return rules


def _fork() -> int:
    """Return as os.fork does, or a negative number if there are too many processes or too little memory."""
    try:
        return os.fork()
    except OSError:  # the server sees the socket closed
        return -1


def _give_way() -> None:
    """Let the server run first, and be ended before it, as far as the system allows it."""
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.nice(_NICER)
    with contextlib.suppress(OSError):  # no Linux, or not this one
        Path("/proc/self/oom_score_adj").write_text(_WORTH_LEAST)


if __name__ == "__main__":
    main(int(sys.argv[1]))
