"""Encoded images -> a model's rows, in threads of their own.

Decoding takes milliseconds, and must hold up neither an event loop nor an instance. Nor may one caller's
images hold up another's: a call of many gives way to others after a turn, and images that take long have
threads of their own. The threads are daemons, so that nothing that is decoded keeps a process from ending.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from foldserve.errors import ImageError
from foldserve.imaging import check_cost, prepare_picture, read_picture
from foldserve.serving.errors import InvalidArgumentError, ResourceExhaustedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from foldserve.imaging import ImageSpec
    from foldserve.serving.services.requests import InferenceRequest

# Called with the call and, where its images could not be decoded, why.
OnDecoded: TypeAlias = "Callable[[InferenceRequest, Exception | None], None]"

# After as long a call gives way to others: an image of some megapixels, or hundreds of small ones.
_TURN_S = 0.05
# In pixels, see Picture.work: 30 Mi in one scan, 20 Mi in the 10 of a progressive JPEG; some 0.4 s.
_LONG_WORK = 32 * 1024 * 1024

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Job:
    """A call whose first ``done_count`` images are in ``rows`` [N, C, H, W]."""

    request: InferenceRequest
    spec: ImageSpec
    on_decoded: OnDecoded
    byte_count: int
    rows: NDArray[np.uint8] | None = None
    done_count: int = 0


class ImageDecoder:
    """A bounded pool.

    Args:
        thread_count: images decoded at the same time, beside half as many that take long.
        max_bytes: most bytes that waiting calls may hold, their images encoded and their pixels decoded taken
            together.
        max_pixels: most pixels, width times height, of an image that is decoded.
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
        self._closed = False

    @property
    def held_bytes(self) -> int:
        """Bytes that waiting calls hold."""
        return self._held_bytes

    def submit(self, request: InferenceRequest, spec: ImageSpec, on_decoded: OnDecoded) -> None:
        """Turn ``request.encoded`` into ``request.rows``, then call ``on_decoded`` from a thread of the pool.

        Raises:
            ResourceExhaustedError: the calls that wait, with this one, would hold more than ``max_bytes``.
        """
        byte_count = sum(map(len, request.encoded)) + len(request.encoded) * int(np.prod(spec.shape))
        with self._changed:
            if self._held_bytes + byte_count > self._max_bytes:
                raise ResourceExhaustedError(
                    f"{len(request.encoded)} images need {byte_count} bytes, encoded and decoded; other calls "
                    f"hold {self._held_bytes} of the {self._max_bytes} that encoded images may: send fewer "
                    "at a time, try again later, or raise --max-queue-mib"
                )
            self._held_bytes += byte_count
            if not self._threads:
                self._start()
        self._short.put(_Job(request, spec, on_decoded, byte_count))

    def close(self) -> None:
        """Drop what waits; what is being decoded ends by itself."""
        self._closed = True
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
        while (job := lane.get()) is not None and not self._closed:
            try:
                following = self._decode_turn(job, is_long=lane is self._long)
            except Exception as error:  # becomes the call's answer
                self._finish(job, error)
            else:
                if following is None:
                    self._finish(job, None)
                else:
                    following.put(job)

    def _decode_turn(self, job: _Job, *, is_long: bool) -> queue.SimpleQueue[_Job | None] | None:
        """Decode some of a job's images; return where it waits for its next turn, None where it is done."""
        request = job.request
        if job.rows is None:
            job.rows = np.empty((len(request.encoded), *job.spec.shape), np.uint8)
        give_way_s = time.monotonic() + _TURN_S
        while job.done_count < len(request.encoded):
            if request.cancelled or request.deadline_s <= time.monotonic():
                break  # the batcher, which sees it too, answers
            try:
                picture = read_picture(request.encoded[job.done_count])
                check_cost(picture, self._max_pixels)
                if picture.work > _LONG_WORK and not is_long:
                    return self._long
                job.rows[job.done_count] = prepare_picture(picture, job.spec, max_pixels=self._max_pixels)
            except ImageError as error:
                raise InvalidArgumentError(f"image {job.done_count}: {error}") from None
            job.done_count += 1
            if time.monotonic() >= give_way_s and job.done_count < len(request.encoded):
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
            _log.exception("a decoded call could not be handed on")
