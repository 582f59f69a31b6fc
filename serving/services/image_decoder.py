"""Decodes images into a model's rows, in a pool of threads that each have a process.

Decoding takes milliseconds, and must block neither an event loop nor a model instance. Nor may one caller's
images delay another's: a request of many images yields to others after a turn, and images that take long have
threads of their own. The threads are daemons, so that no decoding keeps the process from ending.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from foldserve.serving.decoding.own_process import OwnProcess, ProcessStarter
from foldserve.serving.decoding.turn import End, TurnRules
from foldserve.serving.errors import InvalidArgumentError, ResourceExhaustedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from foldserve.imaging import ImageSpec
    from foldserve.serving.services.requests import InferenceRequest

# Called with the request and, if its images could not be decoded, the error.
OnDecoded: TypeAlias = "Callable[[InferenceRequest, Exception | None], None]"

# What one message to a process holds at most, encoded images and pixels together, unless it is one image.
_TURN_BYTES = 1024 * 1024
_TURN_IMAGES = 256

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Job:
    """A request of which the first ``done_count`` images are decoded into ``rows`` [N, C, H, W]."""

    request: InferenceRequest
    spec: ImageSpec
    on_decoded: OnDecoded
    byte_count: int
    rows: NDArray[np.uint8] | None = None
    done_count: int = 0

    def next_images(self) -> tuple[Sequence[bytes], NDArray[np.uint8]]:
        """Return the images of the next turn, and the rows that they become."""
        assert self.rows is not None
        row_bytes = math.prod(self.spec.shape)
        first = self.done_count
        images = self.request.encoded[first : first + _TURN_IMAGES]
        sizes = itertools.accumulate(len(image) + row_bytes for image in images)
        count = max(1, sum(size <= _TURN_BYTES for size in sizes))
        return images[:count], self.rows[first : first + count]


class ImageDecoder:
    """Decodes in a bounded pool of threads and their processes, which start with the first request.

    Args:
        thread_count: images decoded at the same time, in addition to half as many that take long.
        max_bytes: most bytes that waiting requests may hold, encoded images and decoded pixels together.
        max_pixels: most pixels, width times height, of one image.
    """

    def __init__(self, *, thread_count: int, max_bytes: int, max_pixels: int) -> None:
        self._thread_count = thread_count
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._held_bytes = 0
        self._changed = threading.Lock()
        self._short: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._long: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._starter = ProcessStarter()
        self._closed = False

    @property
    def held_bytes(self) -> int:
        """Bytes that waiting requests hold."""
        return self._held_bytes

    def submit(self, request: InferenceRequest, spec: ImageSpec, on_decoded: OnDecoded) -> None:
        """Decode ``request.encoded`` into ``request.rows``, then call ``on_decoded`` on a thread of the pool.

        Raises:
            ResourceExhaustedError: with this request, those that wait would hold more than ``max_bytes``.
        """
        byte_count = sum(map(len, request.encoded)) + len(request.encoded) * math.prod(spec.shape)
        with self._changed:
            if self._held_bytes + byte_count > self._max_bytes:
                raise ResourceExhaustedError(
                    f"{len(request.encoded)} images need {byte_count} bytes, encoded and decoded; other "
                    f"requests hold {self._held_bytes} of the {self._max_bytes} available: send fewer images "
                    "per request, try again later, or raise the server's --max-queue-mib"
                )
            self._held_bytes += byte_count
            if not self._threads:
                self._start()
        self._short.put(_Job(request, spec, on_decoded, byte_count))

    def close(self) -> None:
        """Drop the waiting requests, and end the processes, also those that decode."""
        self._closed = True
        self._starter.close()
        for _ in self._threads:
            self._short.put(None)
            self._long.put(None)

    def _start(self) -> None:
        lanes = [self._short] * self._thread_count + [self._long] * max(1, self._thread_count // 2)
        self._threads = [
            threading.Thread(target=self._serve, args=(lane,), name=f"decode-{index}", daemon=True)
            for index, lane in enumerate(lanes)
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self, lane: queue.SimpleQueue[_Job | None]) -> None:
        with contextlib.closing(OwnProcess(self._starter)) as process:
            while (job := lane.get()) is not None and not self._closed:
                try:
                    following = self._take_turn(job, process, takes_long=lane is self._long)
                except Exception as error:  # becomes the request's answer
                    self._finish(job, error)
                else:
                    if following is None:
                        self._finish(job, None)
                    else:
                        following.put(job)

    def _take_turn(
        self, job: _Job, process: OwnProcess, *, takes_long: bool
    ) -> queue.SimpleQueue[_Job | None] | None:
        """Decode some of a job's images; return the queue for its next turn, None if it is done."""
        request = job.request
        if job.rows is None:
            job.rows = np.empty((len(request.encoded), *job.spec.shape), np.uint8)
        if not request.cancelled and request.deadline_s > time.monotonic():  # else the batcher answers
            images, rows = job.next_images()
            rules = TurnRules(job.spec, self._max_pixels, takes_long)
            outcome = process.decode_turn(images, rules, rows)
            job.done_count += outcome.done_count
            if outcome.end is End.REFUSED:
                raise InvalidArgumentError(f"image {job.done_count}: {outcome.message}")
            if outcome.end is End.LONG:
                return self._long
            if job.done_count < len(request.encoded):
                return self._short
        request.rows = job.rows
        return None

    def _finish(self, job: _Job, error: Exception | None) -> None:
        job.request.encoded = ()
        with self._changed:
            self._held_bytes -= job.byte_count
        try:
            job.on_decoded(job.request, error)
        except Exception:
            _log.exception("a decoded request could not be passed on")
