"""Gives each decoding thread of the server a process, which decodes in its place."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pickle
import shlex
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from foldserve.serving.decoding.turn import End, Outcome, TurnRules, decode_turn
from foldserve.serving.decoding.wire import READY, SILENCE_S, SharedRows, receive_answer, send_order
from foldserve.serving.errors import InternalError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

MAIN_MODULE = "foldserve.serving.decoding.process_main"

# Where no process can be started, it is not tried with each picture.
_LAUNCH_EVERY_S = 10.0

_log = logging.getLogger(__name__)


class ProcessStarter:
    """Starts processes that decode: forks of one that has the decoder loaded, which the first start launches.

    Attributes:
        closed: whether no more are started.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._launcher: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._has_worked = False
        self._next_try_s = -float("inf")
        self.closed = False

    def start(self) -> DecodingProcess | None:
        """Return a process that is ready; the first is so after some tenths of a second.

        Returns None where none can be started: on other systems than Linux, or where this one forbids it.

        Raises:
            OSError: this one could not be started, but others were.
        """
        if sys.platform != "linux" or (not self._has_worked and time.monotonic() < self._next_try_s):
            return None
        try:
            process = self._fork()
            process.wait_until_ready()
        except OSError as error:
            if self._has_worked:
                raise
            self._give_up_for_now(error)
            return None
        self._has_worked = True
        return process

    def close(self) -> None:
        """End all processes, also amid decoding, and start no more."""
        with self._lock:
            self.closed = True
            self._end_launcher()

    def _fork(self) -> DecodingProcess:
        with self._lock, contextlib.ExitStack() as undo:
            if self.closed:
                raise ConnectionError("the server stops")
            memory = undo.enter_context(contextlib.closing(SharedRows.new()))
            ours, theirs = map(undo.enter_context, socket.socketpair())
            try:
                self._send_to_launcher(theirs.fileno(), memory.descriptor)
            except ConnectionError:  # it is about to end
                self._end_launcher()
                self._send_to_launcher(theirs.fileno(), memory.descriptor)
            theirs.close()
            undo.pop_all()
        return DecodingProcess(ours, memory)

    def _send_to_launcher(self, *descriptors: int) -> None:
        if self._launcher is None or self._launcher.poll() is not None:
            self._end_launcher()
            self._launch()
        assert self._control is not None
        socket.send_fds(self._control, [b"\0"], descriptors)

    def _give_up_for_now(self, error: OSError) -> None:
        with self._lock:
            is_new = time.monotonic() >= self._next_try_s and not self.closed
            self._next_try_s = time.monotonic() + _LAUNCH_EVERY_S
            self._end_launcher()
        if is_new:
            _log.warning(
                "no decoding process can be started, so the server decodes itself: %s (%s shows the fault)",
                *(error, shlex.join(self._command(0)[:-1])),
            )

    def _launch(self) -> None:
        # It finds modules as the server does, wherever that was started. Copying pixels needs no threads, and
        # is up to a tenth faster in pages of 2 MiB, where the kernel has some.
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
            "OPENBLAS_NUM_THREADS": "1",
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        }
        self._control, theirs = socket.socketpair()
        with theirs:
            self._launcher = subprocess.Popen(  # noqa: S603  # this very program
                self._command(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # the server's is its log
                env=environment,
                pass_fds=[theirs.fileno()],
            )

    @staticmethod
    def _command(control_number: int) -> list[str]:
        return [sys.executable, "-P", "-m", MAIN_MODULE, str(control_number)]

    def _end_launcher(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._launcher is not None:
            self._launcher.kill()  # at once; its forks end with it
            self._launcher.wait()
            self._launcher = None


class DecodingProcess:
    """The server's end of a process that decodes."""

    def __init__(self, end: socket.socket, memory: SharedRows) -> None:
        self._end = end
        self._memory = memory
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            end.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", SILENCE_S, 0))

    def wait_until_ready(self) -> None:
        """Wait until it can decode; if it never will, close it.

        Raises:
            OSError: it ended, or is silent.
        """
        try:
            if self._end.recv(len(READY)) != READY:
                raise ConnectionError("it ended at once")
        except OSError:
            self.close()
            raise

    def decode_turn(self, images: Sequence[bytes], rules: TurnRules, rows: NDArray[np.uint8]) -> Outcome:
        """Decode the first of ``images`` into ``rows`` [N, C, H, W].

        Raises:
            RuntimeError: the decoder has a fault.
            ConnectionError: it ended.
            OSError: it is silent, or there is no memory for the pixels.
            ValueError: its answer makes no sense.
        """
        decoded = self._memory.rows(rows.shape)
        send_order(self._end, _pickle_rules(rules), images)
        outcome = receive_answer(self._end, len(images))
        if outcome.end is (End.LONG if rules.takes_long else End.TIME) and not outcome.done_count:
            raise ValueError("it decoded nothing, and gives no reason")
        if outcome.end is End.FAULT:
            raise RuntimeError(f"the decoder has a fault:\n{outcome.message}")
        rows[: outcome.done_count] = decoded[: outcome.done_count]
        return outcome

    def close(self) -> None:
        """Let go of it; it ends when it has decoded."""
        self._end.close()
        self._memory.close()


class OwnProcess:
    """The process of one thread. Where there can be none, the thread decodes itself."""

    def __init__(self, starter: ProcessStarter) -> None:
        self._starter = starter
        self._process: DecodingProcess | None = None

    def decode_turn(self, images: Sequence[bytes], rules: TurnRules, rows: NDArray[np.uint8]) -> Outcome:
        """Decode the first of ``images`` into ``rows`` [N, C, H, W], as `turn` does.

        Raises:
            RuntimeError: the decoder has a fault.
            InternalError: the process ended, and so did another in its place, or it was silent for two
                minutes. The next turn has another.
            UnavailableError: the server stops.
        """
        try:
            try:
                return self._decode_turn(images, rules, rows)
            except ConnectionError:  # perhaps before it was sent anything; perhaps for want of memory
                self.close()
                return self._decode_turn(images, rules, rows)
        except (OSError, ValueError) as error:
            self.close()
            if self._starter.closed:
                raise UnavailableError("the server stops; try again, or use another server") from None
            _log.error("decoding processes were lost that decoded %d images: %s", len(images), error)
            raise InternalError(
                "the processes that decoded the request's images ended; one image may do that to them: send "
                "them one by one to find it"
            ) from None

    def close(self) -> None:
        """Let go of the process, which ends when it has decoded."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _decode_turn(self, images: Sequence[bytes], rules: TurnRules, rows: NDArray[np.uint8]) -> Outcome:
        self._process = self._process or self._starter.start()
        if self._process is None:
            return decode_turn(images, rules, rows)
        return self._process.decode_turn(images, rules, rows)


@functools.lru_cache(maxsize=16)
def _pickle_rules(rules: TurnRules) -> bytes:
    return pickle.dumps(rules)
