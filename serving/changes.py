"""Reports changes from any thread to an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)


class Changes:
    """Combines changes that come together into one report. Create it on the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Report a change. May be called from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._changed.set)

    async def follow(self, publish: Callable[[], Awaitable[None]]) -> None:
        """Call ``publish`` after changes, until cancelled; its errors are logged."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await publish()
            except Exception:
                _log.exception("publishing a change failed")
