"""Encoded images -> a model's rows, in threads of their own.

Decoding takes milliseconds, and must hold up neither an event loop nor an instance.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from imaging import ImageError, prepare_image
from serving.errors import InvalidArgumentError, ResourceExhaustedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from imaging import ImageSpec
    from serving.calls import Call

# Called with the call and, where its images could not be decoded, why.
OnDecoded: TypeAlias = "Callable[[Call, Exception | None], None]"


class ImageDecoder:
    """A bounded pool.

    Args:
        thread_count: images decoded at the same time.
        max_bytes: most bytes that waiting calls may hold, their images encoded and their pixels decoded taken
            together.
        max_pixels: most pixels, width times height, of an image that is decoded.
    """

    def __init__(self, *, thread_count: int, max_bytes: int, max_pixels: int) -> None:
        self._threads = ThreadPoolExecutor(thread_count, thread_name_prefix="decode")
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._held_bytes = 0
        self._changed = threading.Lock()

    def submit(self, call: Call, spec: ImageSpec, on_decoded: OnDecoded) -> None:
        """Turn ``call.encoded`` into ``call.rows``, then call ``on_decoded`` from a thread of the pool.

        Raises:
            ResourceExhaustedError: the calls that wait, with this one, would hold more than ``max_bytes``.
        """
        byte_count = sum(map(len, call.encoded)) + len(call.encoded) * int(np.prod(spec.shape))
        with self._changed:
            if self._held_bytes + byte_count > self._max_bytes:
                raise ResourceExhaustedError(
                    f"{len(call.encoded)} images need {byte_count} bytes, encoded and decoded; other calls "
                    f"hold {self._held_bytes} of the {self._max_bytes} that encoded images may: send fewer "
                    "at a time, try again later, or raise --max-queue-mib"
                )
            self._held_bytes += byte_count
        self._threads.submit(self._decode, call, spec, byte_count, on_decoded)

    def close(self) -> None:
        """Drop what waits; what is being decoded ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _decode(self, call: Call, spec: ImageSpec, byte_count: int, on_decoded: OnDecoded) -> None:
        error: Exception | None = None
        try:
            rows = np.empty((len(call.encoded), *spec.shape), np.uint8)
            for index, encoded in enumerate(call.encoded):
                if call.cancelled or call.deadline_s <= time.monotonic():
                    break  # the batcher, which sees it too, answers
                rows[index] = self._prepare(encoded, spec, index)
            call.rows = rows
        except Exception as failure:  # becomes the call's answer
            error = failure
        finally:
            call.encoded = ()
            with self._changed:
                self._held_bytes -= byte_count
        on_decoded(call, error)

    def _prepare(self, encoded: bytes, spec: ImageSpec, index: int) -> np.ndarray:
        try:
            return prepare_image(encoded, spec, max_pixels=self._max_pixels)
        except ImageError as error:
            raise InvalidArgumentError(f"image {index}: {error}") from None
