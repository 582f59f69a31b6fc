"""Logs recurring problems once: when they appear, change and end, not at every poll."""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)


class LogOnce:
    """Remembers the last problem logged per subject. Each subject may be used by one thread at a time."""

    def __init__(self) -> None:
        self._notices: dict[str, str] = {}

    def update(self, about: str, text: str, error: Exception | None = None) -> None:
        """Log ``text`` with the traceback of ``error``, unless it was the last text about this subject.

        An empty text means that the problem is over.
        """
        if text == self._notices.get(about, ""):
            return
        self._notices[about] = text
        if text:
            _log.error("%s: %s", about, text, exc_info=error)
        else:
            _log.info("%s: the problem is over", about)
