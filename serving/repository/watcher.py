"""Looks at the repository again and again, so that what changes on disk changes what is served."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from foldserve.serving.repository.repository import ModelRepository

_log = logging.getLogger(__name__)


class Watcher:
    """Refreshes a repository every ``poll_s`` seconds while it is entered as a context manager.

    Polling, not the kernel's notices: those are not sent for network file systems, and the folders of a
    repository are few.
    """

    def __init__(self, repository: ModelRepository, poll_s: float) -> None:
        self._repository = repository
        self._poll_s = poll_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Look no more; a look that is under way ends by itself."""
        self._stopping.set()

    def _watch(self) -> None:
        while not self._stopping.wait(self._poll_s):
            try:
                self._repository.refresh()
            except Exception:
                # Whatever one look met with, what is served goes on, and the next look may see it in order.
                _log.exception("looking at the repository failed")
