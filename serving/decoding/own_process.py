"""Gives each decoding thread of the server a process, which decodes in its place."""

from __future__ import annotations

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
from typing import TYPE_CHECKING

from foldserve.serving.decoding.turn import Outcome, TurnRules, decode_turn
from foldserve.serving.decoding.wire import READY, SharedRows, receive_answer, send_order
from foldserve.serving.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

MAIN_MODULE = "foldserve.serving.decoding.process_main"

# Decoding takes some 3 s of a CPU at most; a process that is silent for longer than this is stuck.
_SILENCE_S = 120
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
        self._next_launch_s = -float("inf")
        self.closed = False

    def start(self) -> DecodingProcess | None:
        """Return a new process, None if there can be none.

        Raises:
            OSError: there are no descriptors, or the process that forks has just ended.
        """
        with self._lock:
            if self.closed or not self._is_launched():
                return None
            assert self._control is not None
            ours, theirs = socket.socketpair()
            memory = SharedRows.new_descriptor()
            with theirs:
                socket.send_fds(self._control, [b"\0"], [theirs.fileno(), memory])
            return DecodingProcess(ours, SharedRows(memory))

    def close(self) -> None:
        """End all processes, also amid decoding, and start no more."""
        with self._lock:
            self.closed = True
            self._end_launcher()

    def _is_launched(self) -> bool:
        if sys.platform != "linux":  # memory to share, and processes that end with this one, are Linux's
            return False
        if self._launcher is not None and self._launcher.poll() is None:
            return True
        if time.monotonic() < self._next_launch_s:
            return False
        self._next_launch_s = time.monotonic() + _LAUNCH_EVERY_S
        if self._launcher is not None:
            command = shlex.join(map(str, self._command(0)[:-1]))
            _log.warning(
                "decoding processes end with status %s and are started again; until then the server decodes "
                "itself (%s shows the fault, if there is one)",
                *(self._launcher.returncode, command),
            )
        self._end_launcher()
        try:
            self._launch()
        except OSError as error:
            _log.warning("no decoding process can be started, so the server decodes itself: %s", error)
            return False
        return True

    def _launch(self) -> None:
        # It finds modules as the server does, wherever that was started. Copying pixels needs no threads.
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
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
        self._ready = False
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            end.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", _SILENCE_S, 0))

    def is_ready(self, *, wait: bool = False) -> bool:
        """Return whether it can decode by now, or ``wait`` until it can; raises OSError if it ended."""
        try:
            self._ready = self._ready or self._end.recv(1, 0 if wait else socket.MSG_DONTWAIT) == READY
        except BlockingIOError:
            return False
        if not self._ready:
            raise ConnectionError("it ended")
        return True

    def decode_turn(self, images: Sequence[bytes], rules: TurnRules, rows: NDArray[np.uint8]) -> Outcome:
        """Decode the first of ``images`` into ``rows`` [N, C, H, W].

        Raises:
            ConnectionError: it ended.
            OSError: it is silent, or there is no memory for the pixels.
            ValueError: its answer makes no sense.
        """
        decoded = self._memory.rows(rows.shape)
        send_order(self._end, _pickle_rules(rules), images)
        outcome = receive_answer(self._end, len(images))
        rows[: outcome.done_count] = decoded[: outcome.done_count]
        return outcome

    def close(self) -> None:
        """Let go of it; it ends when it has decoded."""
        self._end.close()
        self._memory.close()


class OwnProcess:
    """The process of one thread. Until it is ready, and if there is none, the thread decodes itself."""

    def __init__(self, starter: ProcessStarter) -> None:
        self._starter = starter
        self._process: DecodingProcess | None = None

    def decode_turn(self, images: Sequence[bytes], rules: TurnRules, rows: NDArray[np.uint8]) -> Outcome:
        """Decode the first of ``images`` into ``rows`` [N, C, H, W], as `turn` does.

        Raises:
            InternalError: the process ended, and so did another in its place, or it was silent for two
                minutes. The next turn has another.
        """
        process = self._ready_process()
        if process is None:
            return decode_turn(images, rules, rows)
        try:
            try:
                return process.decode_turn(images, rules, rows)
            except ConnectionError:  # perhaps before it was sent anything; perhaps for want of memory
                return self._new_process().decode_turn(images, rules, rows)
        except (OSError, ValueError) as error:
            self.close()
            if not self._starter.closed:
                _log.error("decoding processes were lost that decoded %d images: %s", len(images), error)
            raise InternalError("the process that decoded the request's images ended") from None

    def close(self) -> None:
        """Let go of the process, which ends when it has decoded."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _new_process(self) -> DecodingProcess:
        """Return a process in place of one that ended; raises OSError if there is none."""
        self.close()
        self._process = self._starter.start()
        if self._process is None:
            raise ConnectionError("it ended, and no other can be started")
        self._process.is_ready(wait=True)
        return self._process

    def _ready_process(self) -> DecodingProcess | None:
        try:
            self._process = self._process or self._starter.start()
            if self._process is not None and self._process.is_ready():
                return self._process
        except OSError as error:  # there are no descriptors, or it ended at once
            _log.debug("no decoding process for this thread: %s", error)
            self.close()
        return None


@functools.lru_cache(maxsize=16)
def _pickle_rules(rules: TurnRules) -> bytes:
    return pickle.dumps(rules)
