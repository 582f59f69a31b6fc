"""Word of changes, from any thread to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)


class Changes:
    """Many changes at once are told once. Made on the event loop that it tells."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Note, from any thread, that something has changed."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody listens
            self._loop.call_soon_threadsafe(self._changed.set)

    async def follow(self, tell: Callable[[], Awaitable[None]]) -> None:
        """Call ``tell`` after each change, until cancelled; what it fails with is logged."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await tell()
            except Exception:
                _log.exception("publishing a change failed")
