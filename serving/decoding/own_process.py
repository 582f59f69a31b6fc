"""Gives each decoding thread of the server a process, which decodes in its place."""

from __future__ import annotations

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
from foldserve.serving.decoding.wire import READY, receive_answer, send_order
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

    def start(self) -> socket.socket | None:
        """Return the socket of a new process, which sends `READY` once it can decode; None if none can start.

        Raises:
            OSError: there are no descriptors, or the process that forks has just ended.
        """
        with self._lock:
            if self.closed or not self._is_launched():
                return None
            assert self._control is not None
            ours, theirs = socket.socketpair()
            with theirs:
                socket.send_fds(self._control, [b"\0"], [theirs.fileno()])
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", _SILENCE_S, 0))
            return ours

    def close(self) -> None:
        """End all processes, also amid decoding, and start no more."""
        with self._lock:
            self.closed = True
            self._end_launcher()

    def _is_launched(self) -> bool:
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


class OwnProcess:
    """The process of one thread. Until it is ready, and if there is none, the thread decodes itself."""

    def __init__(self, starter: ProcessStarter) -> None:
        self._starter = starter
        self._end: socket.socket | None = None
        self._ready = False

    def decode_turn(self, images: Sequence[bytes], rules: TurnRules, rows: NDArray[np.uint8]) -> Outcome:
        """Decode the first of ``images`` into ``rows`` [N, C, H, W], which are contiguous, as `turn` does.

        Raises:
            InternalError: the process ended, or was silent for two minutes. The next turn has another.
        """
        if not self._is_ready():
            return decode_turn(images, rules, rows)
        assert self._end is not None
        try:
            send_order(self._end, pickle.dumps(rules), images)
            return receive_answer(self._end, rows)
        except (OSError, ValueError) as error:
            self.close()
            if not self._starter.closed:
                _log.error("a process was lost that decoded %d images: %s", len(images), error)
            raise InternalError("the process that decoded the request's images ended") from None

    def close(self) -> None:
        """Let go of the process, which ends when it has decoded."""
        if self._end is not None:
            self._end.close()
        self._end, self._ready = None, False

    def _is_ready(self) -> bool:
        """Return whether there is a process that can decode; if not, have one started."""
        try:
            self._end = self._end or self._starter.start()
            if self._end is None:
                return False
            # Looking at what is there to read finds a process that ended while it had nothing to do.
            flags = socket.MSG_DONTWAIT | (socket.MSG_PEEK if self._ready else 0)
            received = self._end.recv(len(READY), flags)
        except BlockingIOError:  # nothing, as it should be of one that is ready
            return self._ready
        except OSError as error:  # no descriptors, or the process that forks has just ended
            _log.debug("no decoding process for this thread: %s", error)
            received = b""
        if self._ready or received != READY:
            self.close()
            return False
        self._ready = True
        return True
