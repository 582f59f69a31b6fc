"""Polls the model repository and reloads models whose files have changed."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from foldserve.serving.repository.repository import ModelRepository

_log = logging.getLogger(__name__)


class Watcher:
    """Refreshes a repository every ``poll_s`` seconds, as a context manager.

    It polls because kernel notifications are not sent for network file systems.
    """

    def __init__(self, repository: ModelRepository, poll_s: float) -> None:
        self._repository = repository
        self._poll_s = poll_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Self:
        """Start polling."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop polling, without waiting for a refresh that is running."""
        self._stopping.set()

    def _watch(self) -> None:
        while not self._stopping.wait(self._poll_s):
            try:
                self._repository.refresh()
            except Exception:
                # Loaded models go on being served, and the next refresh may succeed.
                _log.exception("refreshing the repository failed; loaded models go on being served")
