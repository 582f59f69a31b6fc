"""What a watcher finds wrong at every look, logged once: when it comes, changes and ends."""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)


class Notices:
    """The last notice about each thing; each thing for one thread at a time."""

    def __init__(self) -> None:
        self._notices: dict[str, str] = {}

    def set(self, about: str, text: str, error: Exception | None = None) -> None:
        """Log ``text``, with the traceback of ``error``, unless it was the last about the same thing.

        "" is that all is well.
        """
        if text == self._notices.get(about, ""):
            return
        self._notices[about] = text
        if text:
            _log.error("%s: %s", about, text, exc_info=error)
        else:
            _log.info("%s: in order again", about)
