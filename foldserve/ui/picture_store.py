"""Keeps the pictures that visitors look at, in bounded memory."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from foldserve.ui.errors import UiError

MAX_BYTES = 256 * 1024 * 1024


class PictureStore:
    """Holds encoded pictures by the SHA-256 of their content; forgets those that were unused the longest.

    A visitor's session holds keys alone, so that many sessions take no more memory than one. Methods may be
    called from any thread.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, picture: bytes) -> str:
        """Hold ``picture``, which is forgotten last of all, and return its key."""
        key = hashlib.sha256(picture).hexdigest()
        with self._lock:
            if key not in self._pictures:
                self._pictures[key] = picture
                self._bytes += len(picture)
            self._pictures.move_to_end(key)
            while self._bytes > self._max_bytes and len(self._pictures) > 1:
                _, forgotten = self._pictures.popitem(last=False)
                self._bytes -= len(forgotten)
        return key

    def get(self, key: str) -> bytes:
        """Return the picture of ``key``.

        Raises:
            UiError: it was forgotten.
        """
        with self._lock:
            if key not in self._pictures:
                raise UiError("this picture is no longer held, because others came since: choose it again")
            self._pictures.move_to_end(key)
            return self._pictures[key]
